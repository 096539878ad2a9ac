"""Shared by the callbacks: the type of the module that they watch, and the way to the loggers."""

from collections.abc import Mapping
from typing import Protocol

import pytorch_lightning as pl
from torch import Tensor

from ..estimators import Estimator
from ..metrics import BoundMetrics
from ..objectives import Objective
from ..schedules import Schedule
from ..vae import VAE


class Training(Protocol):
    """The parts of a LightningModule that the callbacks use; `models.base.VAEModule` has them all.

    Attributes:
        vae: the model.
        objective: what is maximised.
        estimator: how it is differentiated.
        schedules: the numbers that change with the step, by name.
        latest: the training metrics that were last read off the device; a new dictionary each time.
        batch_terms: the sums of the last batch's terms, in the order of `Terms`, and the count of
            its images, shape [5]. Whoever leaves the batch out of the means zeroes it in place.
        metrics: what validation and test add up.
    """

    vae: VAE
    objective: Objective
    estimator: Estimator
    schedules: Mapping[str, Schedule]
    latest: Mapping[str, float]
    batch_terms: Tensor
    metrics: BoundMetrics


def write(trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
    """Gives a row to the loggers, at the number of steps done: `self.log` is slower, and one behind
    that number."""
    for logger in trainer.loggers:
        row = {**metrics, "epoch": trainer.current_epoch}
        logger.log_metrics(row, step=trainer.global_step)
