"""Gives Lightning a checkpoint that has been read already."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from vae_lab.callbacks import DurableIO
from vae_lab.storage.checkpoints import Saved


class HandedIO(DurableIO):
    """Loads what it was handed instead of reading the file again, once, and if it is the same."""

    handed: Saved | None = None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        handed, self.handed = self.handed, None
        if handed is not None and handed.path == Path(path) and handed.is_current:
            return handed.content
        return super().load_checkpoint(path, map_location, weights_only)


def hand(trainer: pl.Trainer, saved: Saved) -> Path:
    """Lets the trainer have a checkpoint the next time that it loads one from its path."""
    if isinstance(io := trainer.strategy.checkpoint_io, HandedIO):
        io.handed = saved
    return saved.path
