"""A training step of Lightning's, without what it does for hooks that nobody has written.

Lightning calls every hook of every callback, each under a profiler's name, through closures in
closures: of a small model's step on a CPU, of some 6 ms, that is a tenth. What each part saves was
measured there, for one step (docs/speed.md).
"""

from collections import OrderedDict
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loops.fetchers import _DataLoaderIterDataFetcher
from pytorch_lightning.loops.optimization.automatic import _AutomaticOptimization
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.optim import LBFGS, Optimizer


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches, with a shorter way from one to the next.

    It calls the same hooks in the same order. What it leaves out are the closures around them
    (together with those of :class:`Optimization`, 0.7 ms a step), the search for the last batch
    (done six times a step) and the merging of empty dictionaries (together 0.2 ms).
    """

    def __init__(self, trainer: pl.Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.automatic_optimization = Optimization(trainer)
        self._only_moves: bool | None = None  # not known before there is a datamodule

    def advance(self, data_fetcher: Any) -> None:
        optimization: Any = self.automatic_optimization
        plain = isinstance(optimization, Optimization) and optimization.is_plain()
        if self.restarting or not plain or isinstance(data_fetcher, _DataLoaderIterDataFetcher):
            return super().advance(data_fetcher)
        trainer: Any = self.trainer
        self.val_loop.restarting = False
        batch = self._next(data_fetcher)
        batch_idx = self.batch_idx + 1
        self.batch_progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        if call(trainer, "on_train_batch_start", batch, batch_idx) == -1:
            self._skip_the_rest()
        self.batch_progress.increment_started()
        outputs = optimization.step(trainer.optimizers[0], batch, batch_idx)
        self.batch_progress.increment_processed()
        self._step_schedulers()
        call(trainer, "on_train_batch_end", outputs, batch, batch_idx)
        self._log(trainer)

    def _next(self, data_fetcher: Any) -> Any:
        """The next batch, on its device."""
        trainer: Any = self.trainer
        batch, _, _ = next(data_fetcher)
        self.batch_progress.is_last_batch = data_fetcher.done
        if self._only_moves is None:
            self._only_moves = _only_moves(trainer)
        if self._only_moves:
            device = trainer.strategy.root_device
            return trainer.datamodule.transfer_batch_to_device(batch, device, 0)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _skip_the_rest(self) -> None:
        """Ends the epoch, as a module's hook has answered -1."""
        self.batch_progress.increment_by(0, is_last_batch=True)
        self.batch_progress.increment_processed()
        self._step_schedulers()
        raise StopIteration

    def _step_schedulers(self) -> None:
        """After a step, and after the last one of an epoch also those that go by epochs."""
        trainer: Any = self.trainer
        module, configs = trainer.lightning_module, trainer.lr_scheduler_configs
        own = type(module).lr_scheduler_step is not pl.LightningModule.lr_scheduler_step
        if own or any(config.reduce_on_plateau for config in configs):
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
        else:
            for config in configs:
                if config.interval == "step" and (self.batch_idx + 1) % config.frequency == 0:
                    self.scheduler_progress.increment_ready()
                    config.scheduler.step()
                    self.scheduler_progress.increment_completed()
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)

    def _log(self, trainer: Any) -> None:
        """Logs what `self.log` was given; Lightning would merge dictionaries even without any."""
        results, connector = trainer._results, trainer._logger_connector
        if results:
            connector.on_batch_end()
        else:
            results.batch = results.batch_size = None
        self.batch_progress.increment_completed()
        if results:
            connector.update_train_step_metrics()

    def _should_accumulate(self) -> bool:
        """Lightning's looks for the last batch, six times a step, before it says no."""
        return self.trainer.accumulate_grad_batches != 1 and super()._should_accumulate()

    def _build_kwargs(self, kwargs: OrderedDict, batch: Any, batch_idx: int) -> OrderedDict:
        """Lightning's reads the signature anew at every step."""
        return OrderedDict(batch=batch, batch_idx=batch_idx)


class Optimization(_AutomaticOptimization):
    """Lightning's way from a batch to new weights, without a closure that the optimizer calls."""

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict) -> dict[str, Any]:
        if not self.is_plain():
            return super().run(optimizer, batch_idx, kwargs)
        return self.step(optimizer, *kwargs.values())

    def step(self, optimizer: Optimizer, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One optimizer step, where :meth:`is_plain` holds."""
        trainer: Any = self.trainer
        module = trainer.lightning_module
        progress = self.optim_progress.optimizer
        progress.step.increment_ready()
        module._current_fx_name = "training_step"  # for self.log
        loss = module.training_step(batch, batch_idx)
        progress.zero_grad.increment_ready()
        call(trainer, "on_before_zero_grad", optimizer)
        progress.zero_grad.increment_started()
        _zero_grad(trainer, optimizer, batch_idx)
        progress.zero_grad.increment_completed()
        call(trainer, "on_before_backward", loss)
        module.backward(loss)
        call(trainer, "on_after_backward")
        call(trainer, "on_before_optimizer_step", optimizer)
        clip = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        module.configure_gradient_clipping(optimizer, *clip)
        optimizer.step()
        progress.step.increment_completed()
        return {"loss": loss.detach()}

    def is_plain(self) -> bool:
        trainer: Any = self.trainer
        return (
            type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.precision_plugin) is Precision
            and isinstance(trainer.profiler, PassThroughProfiler)
            and trainer.lightning_module.automatic_optimization
            and trainer.accumulate_grad_batches == 1
            and not isinstance(trainer.optimizers[0], LBFGS)  # it computes the loss several times
            and not self._skip_backward
            and type(trainer.lightning_module).optimizer_step is pl.LightningModule.optimizer_step
        )


def _only_moves(trainer: Any) -> bool:
    """Whether a batch is only moved to the device, by the datamodule, and not changed on its way.

    Lightning looks for all three hooks at every step.
    """
    around = ("on_before_batch_transfer", "on_after_batch_transfer")
    module, data = type(trainer.lightning_module), type(trainer.datamodule)
    return isinstance(trainer.datamodule, pl.LightningDataModule) and all(
        getattr(owner, name) is getattr(base, name)
        for owner, base, names in (
            (module, pl.LightningModule, (*around, "transfer_batch_to_device")),
            (data, pl.LightningDataModule, around),
        )
        for name in names
    )


def call(trainer: Any, hook: str, *arguments: Any) -> Any:
    """The callbacks' hooks and then the module's, as Lightning does; the module's answer."""
    module = trainer.lightning_module
    before, module._current_fx_name = module._current_fx_name, hook
    empty = getattr(pl.Callback, hook)
    for callback in trainer.callbacks:
        own = getattr(callback, hook)
        if getattr(own, "__func__", own) is not empty:
            own(trainer, module, *arguments)
    answer = getattr(module, hook)(*arguments)
    module._current_fx_name = before
    return answer


def _zero_grad(trainer: Any, optimizer: Optimizer, batch_idx: int) -> None:
    """To None, as torch does within a profiler's record and some 80 us."""
    module = trainer.lightning_module
    own = type(module).optimizer_zero_grad is not pl.LightningModule.optimizer_zero_grad
    if own or type(optimizer).zero_grad is not Optimizer.zero_grad:
        module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
