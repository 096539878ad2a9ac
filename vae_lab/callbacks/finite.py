"""The end of a run whose numbers have gone bad."""

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch


class FiniteLoss(pl.Callback):
    """Stops the run with an error when a metric is NaN or infinite.

    It looks at the numbers that were read off the device anyway, `pl_module.latest`, whenever that
    is a new dictionary, and at what validation logged. So it costs no synchronisation, and a bad
    value is noticed after the next reading: the step in the message is that of the notice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._checked: Mapping[str, float] | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._check_latest(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The module's hook comes after the callbacks', and may have read the last batch's.
        self._check_latest(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        results = trainer.callback_metrics.items()
        _check({k: float(v) for k, v in results if k.startswith("val/")}, trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_latest(trainer, pl_module)

    def _check_latest(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        latest = getattr(pl_module, "latest", None)
        if latest is not None and latest is not self._checked:
            self._checked = latest
            _check(latest, trainer, pl_module)


def _check(
    metrics: Mapping[str, float], trainer: pl.Trainer, pl_module: pl.LightningModule
) -> None:
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        where = f"at step {trainer.global_step}, epoch {trainer.current_epoch}"
        raise RuntimeError(
            f"{', '.join(bad)} {where} ({_circumstances(metrics, trainer, pl_module)}); "
            "try a lower learning rate or gradient clipping, and resume from the last checkpoint"
        )


def _circumstances(
    metrics: Mapping[str, float], trainer: pl.Trainer, pl_module: pl.LightningModule
) -> str:
    """Learning rate, gradient norm and the finite metrics: where one looks first."""
    numbers = {"lr": trainer.optimizers[0].param_groups[0]["lr"]} if trainer.optimizers else {}
    gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
    if gradients:
        numbers["gradient norm"] = float(torch.nn.utils.get_total_norm(gradients))
    numbers |= {name: value for name, value in metrics.items() if math.isfinite(value)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
