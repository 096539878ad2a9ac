"""The log: rows of training, means over the batches since the last one, and of evaluations."""

from typing import Any, cast

import pytorch_lightning as pl
from torch import Tensor

from ..metrics import Window
from ..objectives import Terms
from .training import Training, write

NAMES = tuple(f"train/{name}" for name in Terms._fields)


class MetricsLog(pl.Callback):
    """Writes what is measured while a module is trained, validated and tested.

    * Training: the objective's terms, the schedules, what the latent has learned without a gradient
      (a codebook's usage, codes that began anew), what the objective has to say besides (a
      discriminator's loss), the learning rate and the speed. A row every
      `log_every_n_steps` batches and at the end of every epoch; it is kept as the module's
      `latest`, for other callbacks. The device is waited for then only. A checkpoint holds the
      terms of the batches since the last row, so that a resumed run writes the same rows.
    * Validation and test: the module's `metrics` over the split.

    It is a callback because a module's own hook would run after that of the callback that saves:
    what is logged at a step could then be missing after a resume.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window = Window()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._window.resume()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        module = cast(Training, pl_module)
        every: int = cast(Any, trainer).log_every_n_steps
        self._window.add(module.batch_terms, batch[2])
        if (batch_idx + 1) % every == 0 or trainer.is_last_batch:
            self._write(trainer, module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._window.pause()
        cast(Training, pl_module).metrics.reset()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = _named("val", pl_module)
        if trainer.state.fn == "validate":
            pl_module.log_dict(metrics)  # trainer.validate returns what is logged
            return
        # For the callbacks that monitor them; log_dict takes 8 ms for each.
        trainer.callback_metrics.update(metrics)
        write(trainer, {name: value.item() for name, value in metrics.items()})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._window.resume()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        cast(Training, pl_module).metrics.reset()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log_dict(_named("test", pl_module))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["window"] = self._window.state_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._window.load_state_dict(checkpoint["window"], pl_module.device)

    def _write(self, trainer: pl.Trainer, module: Training) -> None:
        metrics = self._window.read(NAMES)
        for name, schedule in module.schedules.items():
            metrics[f"train/{name}"] = schedule.at(max(trainer.global_step - 1, 0))
        learned = module.vae.latent.learned() | module.objective.logged()
        metrics |= {f"train/{name}": value.item() for name, value in learned.items()}
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        module.latest = metrics
        write(trainer, metrics)


def _named(split: str, pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """The module's metrics over a split that it has gone through."""
    metrics = cast(Training, pl_module).metrics.compute()
    return {f"{split}/{name}": value for name, value in metrics.items()}
