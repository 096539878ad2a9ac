"""A training step of Lightning's, without what it does for hooks that nobody has written.

Lightning calls every hook of every callback, each under a profiler's name, through closures in
closures: of a small model's step on a CPU that is a tenth.
"""

from collections import OrderedDict
from typing import Any

from torch.optim import Optimizer

from .optional import needs

with needs("train", __name__):
    import pytorch_lightning as pl
    from pytorch_lightning.loops.optimization.automatic import _AutomaticOptimization
    from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
    from pytorch_lightning.plugins.precision import Precision
    from pytorch_lightning.profilers import PassThroughProfiler
    from pytorch_lightning.strategies import SingleDeviceStrategy


def shorten_steps(trainer: pl.Trainer) -> None:
    """Makes `trainer` take such steps, of modules with `training_step(batch, batch_idx) -> loss`.

    Every run is bit for bit the same, but that a resumed one counts its epochs right. Lightning's
    own step remains where there is more to it: several processes, 16 bits, accumulated gradients, a
    profiler, an `optimizer_step` of the module's own.
    """
    loop: Any = trainer.fit_loop
    loop.epoch_loop = _EpochLoop(trainer, loop.epoch_loop.min_steps, loop.epoch_loop.max_steps)
    loop._iteration_based_training = _no


def _no() -> bool:
    """With `max_steps` Lightning, resumed from the end of an epoch, counts that epoch once more."""
    return False


class _EpochLoop(_TrainingEpochLoop):
    def __init__(self, trainer: pl.Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.automatic_optimization = _Optimization(trainer)

    def _build_kwargs(self, kwargs: OrderedDict, batch: Any, batch_idx: int) -> OrderedDict:
        """Lightning's reads the signature anew at every step."""
        return OrderedDict(batch=batch, batch_idx=batch_idx)


class _Optimization(_AutomaticOptimization):
    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict) -> dict[str, Any]:
        if not self._is_plain():
            return super().run(optimizer, batch_idx, kwargs)
        trainer: Any = self.trainer
        module = trainer.lightning_module
        progress = self.optim_progress.optimizer
        progress.step.increment_ready()
        module._current_fx_name = "training_step"  # for self.log
        loss = module.training_step(*kwargs.values())
        progress.zero_grad.increment_ready()
        self._call("on_before_zero_grad", optimizer)
        progress.zero_grad.increment_started()
        module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
        progress.zero_grad.increment_completed()
        self._call("on_before_backward", loss)
        module.backward(loss)
        self._call("on_after_backward")
        self._call("on_before_optimizer_step", optimizer)
        clip = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        module.configure_gradient_clipping(optimizer, *clip)
        optimizer.step()
        progress.step.increment_completed()
        return {"loss": loss.detach()}

    def _is_plain(self) -> bool:
        trainer: Any = self.trainer
        return (
            type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.precision_plugin) is Precision
            and isinstance(trainer.profiler, PassThroughProfiler)
            and trainer.accumulate_grad_batches == 1
            and not self._skip_backward
            and type(trainer.lightning_module).optimizer_step is pl.LightningModule.optimizer_step
        )

    def _call(self, hook: str, *arguments: Any) -> None:
        """The callbacks' hooks and then the module's, as Lightning does."""
        trainer: Any = self.trainer
        module = trainer.lightning_module
        module._current_fx_name = hook
        empty = getattr(pl.Callback, hook)
        for callback in trainer.callbacks:
            own = getattr(callback, hook)
            if getattr(own, "__func__", own) is not empty:
                own(trainer, module, *arguments)
        getattr(module, hook)(*arguments)
        module._current_fx_name = None
