"""Averaged weights that their codes fit."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..averaging import MovingAverage
from ..schedules import schedules
from .versions import is_known


class ExponentialAveraging(WeightAveraging):
    """Validates, tests and saves a :class:`~vae_lab.averaging.MovingAverage` of the model.

    Under a version of Lightning that is not known it averages the weights only.
    """

    state_key = WeightAveraging.__qualname__  # of the checkpoints that there are

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and is_known():
            self._average_model = MovingAverage(pl_module, self.decay)
            # As the module itself will be, which is not converted yet.
            trainer.precision_plugin.convert_module(self._average_model)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        average: Any = self._average_model
        if average is not None and (step := checkpoint["global_step"]):
            for schedule in schedules(average.module).values():
                schedule.set_step(step - 1)  # of the latest update, as in a run that goes through
