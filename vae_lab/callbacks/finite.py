"""No update by a gradient that is NaN or infinite."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ..distributed import all_sum
from ..objectives import Terms
from .training import Training, write


class _Update(NamedTuple):
    """An optimizer step: its place in training, and the numbers that it was made of."""

    step: int  # counted from 1
    epoch: int
    batch: int
    lr: float
    bad: Tensor  # was it left out
    norm: Tensor  # the gradient's
    terms: Tensor  # their sums, and the count of data


class FiniteUpdates(pl.Callback):
    """Leaves out every optimizer step whose gradient is NaN or infinite; stops the run, or goes on.

    The gradient's norm and the objective, which may be minus infinity without it, decide on the
    device: no step waits for a GPU, except with an optimizer that knows no `found_inf` (fused ones
    do; it is how a GradScaler skips a step) or with sharded parameters. Weights, the optimizer's
    state and all moving averages, of the estimator, the objective and of codes, stay as they were.
    The norm is that after DDP's reduction, and the objective that of all processes, so that all
    decide alike. Under float16 the GradScaler leaves out what overflows, which is no fault; there
    the terms are judged.

    The host looks at it whenever `pl_module.latest` is a new dictionary, so after numbers were read
    off the device anyhow, and before every checkpoint; no later step was taken in the meantime
    with `action` "stop". Metrics that are not finite, of training or validation, always stop.

    Args:
        debug_path: where the weights before a fatal step are saved, for a look at them.
        action: "stop" with a FloatingPointError at the first such step; "skip" counts it as
            `train/skipped_updates` and goes on.
        limit: so many skipped steps are too many.
    """

    def __init__(
        self, debug_path: str | Path, action: Literal["stop", "skip"] = "stop", limit: int = 100
    ) -> None:
        super().__init__()
        if action not in ("stop", "skip"):
            raise ValueError(f"action must be stop or skip, got {action!r}")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.debug_path = Path(debug_path)
        self.action = action
        self.limit = limit
        self.skipped = 0
        self._terms: list[Tensor] = []  # of the batches since the last optimizer step
        self._updates: list[_Update] = []  # since the host last looked
        self._stopped: Tensor | None = None
        self._state: list[Tensor] = []  # buffers, which a forward pass may change
        self._buffers: list[Tensor] = []  # their values, as the last good step left them
        self._sharded = False
        self._batch = 0
        self._checked: Mapping[str, float] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = cast(Training, pl_module)
        changed = module.estimator, module.objective, module.vae
        self._state = [buffer for part in changed for buffer in part.buffers()]
        self._buffers = [buffer.clone() for buffer in self._state]
        self._sharded = any(isinstance(p, DTensor) for p in pl_module.parameters())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch_idx

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        self._terms.append(cast(Training, pl_module).batch_terms)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Decide, on the device, whether this step is taken."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        norm = _norm(optimizer, self._sharded)
        terms = cast(Tensor, sum(self._terms))
        # Each process knows its own data's terms only, and all have to decide alike.
        own = all_sum(terms.abs().sum() if scaled else terms[0].abs())
        good = (own if scaled else norm + own) < torch.inf
        bad = good.logical_not()
        if self.action == "stop" and self._stopped is not None:
            bad = bad | self._stopped
        lr = optimizer.param_groups[0]["lr"]
        place = trainer.global_step + 1, trainer.current_epoch, self._batch
        self._updates.append(_Update(*place, lr, bad, norm, terms))
        if not scaled:
            _leave_out(optimizer, bad, self._sharded)
        for term in self._terms:
            term.masked_fill_(bad, 0.0)  # out of the logged means, too
        for buffer, good in zip(self._state, self._buffers, strict=True):
            good.copy_(torch.where(bad, good, buffer))
            buffer.copy_(good)
        self._stopped, self._terms = bad, []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._look(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The module's hook comes after the callbacks', and may have read the last batch's.
        self._look(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        results = trainer.callback_metrics.items()
        self._check({k: float(v) for k, v in results if k.startswith("val/")}, trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look first: a run that is about to stop has left out steps that nothing else knows of."""
        self._look_at_updates(trainer, pl_module)
        checkpoint["skipped_updates"] = self.skipped

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.skipped = checkpoint.get("skipped_updates", 0)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        latest = cast(Training, pl_module).latest
        if latest is not self._checked:
            self._checked = latest
            self._look_at_updates(trainer, pl_module)
            self._check(latest, trainer, pl_module)

    def _look_at_updates(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        updates, self._updates = self._updates, []
        if not updates:
            return
        rows = all_sum(_rows(updates)).tolist()
        bad = [(u, row) for u, row in zip(updates, rows, strict=True) if row[0]]
        if not bad:
            return
        first, (_, norm, *sums) = bad[0]
        numbers = {"gradient norm": norm / trainer.world_size} | _means(sums)
        if self.action == "stop":
            self._stop(numbers, first, trainer, pl_module, may_skip=True)
        if not self.skipped:
            rank_zero_warn(
                f"{_bad(numbers)} at step {first.step}: left out (on_nonfinite=skip); "
                "train/skipped_updates counts such steps"
            )
        self.skipped += len(bad)
        if self.skipped > self.limit:
            numbers["skipped updates"] = self.skipped
            self._stop(numbers, first, trainer, pl_module, may_skip=False)
        write(trainer, {"train/skipped_updates": float(self.skipped)})

    def _check(
        self, metrics: Mapping[str, float], trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        if not all(map(math.isfinite, metrics.values())):
            lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else math.nan
            place = trainer.global_step, trainer.current_epoch, self._batch
            update = _Update(*place, lr, *[torch.empty(0)] * 3)
            self._stop(metrics, update, trainer, pl_module, may_skip=False)

    def _stop(
        self,
        numbers: Mapping[str, float],
        update: _Update,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        may_skip: bool,
    ) -> None:
        schedules = cast(Training, pl_module).schedules.items()
        good = {name: value for name, value in numbers.items() if math.isfinite(value)}
        good |= {name: schedule.at(update.step - 1) for name, schedule in schedules}
        shown = ", ".join(f"{k} {v:.4g}" for k, v in ({"lr": update.lr} | good).items())
        trainer.save_checkpoint(self.debug_path)
        finite = all(p.isfinite().all() for p in pl_module.parameters())
        weights = "weights" if finite else "weights, themselves no longer finite,"
        clip = "trainer.gradient_clip_val=1"
        cure = f"{clip}, or on_nonfinite=skip" if may_skip else f"or {clip}"
        raise FloatingPointError(
            f"{_bad(numbers)} at step {update.step}, epoch {update.epoch}, batch {update.batch} "
            f"({shown}); the {weights} are in {self.debug_path}; try a lower model.optimizer.lr, "
            f"{cure}"
        )


def _rows(updates: list[_Update]) -> Tensor:
    """Was it left out, the gradient's norm, and the terms, of every update."""
    bad, norm, terms = (torch.stack(x) for x in list(zip(*updates, strict=True))[-3:])
    return torch.cat([bad.to(terms).unsqueeze(1), norm.to(terms).unsqueeze(1), terms], 1)


def _norm(optimizer: Optimizer, sharded: bool) -> Tensor:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if sharded:
        return cast(DTensor, get_total_norm(gradients)).full_tensor()
    # As get_total_norm does; sorting by device and type takes it as long as the norms.
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _leave_out(optimizer: Optimizer, bad: Tensor, sharded: bool) -> None:
    """Makes the coming step do nothing where `bad` is true."""
    able = getattr(optimizer, "_step_supports_amp_scaling", False)
    if able and not sharded and bad.device.type != "cpu":  # there, the host has it already
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    elif bad.item():
        optimizer.zero_grad()  # to None, and a parameter without a gradient is left alone


def _means(sums: list[float]) -> dict[str, float]:
    """The terms by name, from their sums and count."""
    *totals, count = sums
    names = (f"train/{name}" for name in Terms._fields)
    return {name: total / (count or 1) for name, total in zip(names, totals, strict=True)}


def _bad(numbers: Mapping[str, float]) -> str:
    bad = (f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value))
    return ", ".join(bad)
