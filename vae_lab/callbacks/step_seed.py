"""Noise as a function of where the run is, not of what it did before."""

from typing import Any

import pytorch_lightning as pl

from ..seeding import seed_step


class StepSeed(pl.Callback):
    """Seeds torch's generators at the start of every batch.

    * Training: from (seed, epoch, batch, rank). Nothing random needs to be saved, a resumed run
      draws what the uninterrupted one would have drawn, ranks draw different noise, and neither
      validation nor pictures nor logging can change training.
    * Validation and test: from (seed, loader, batch, rank), *not* from the epoch. The same noise
      at every validation makes `val/elbo` comparable over epochs: the difference between two of
      them is the model's, not the draw's.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed_step(self.seed, "train", trainer.current_epoch, batch_idx, trainer.global_rank)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        seed_step(self.seed, "validation", dataloader_idx, batch_idx, trainer.global_rank)

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        seed_step(self.seed, "test", dataloader_idx, batch_idx, trainer.global_rank)
