"""The position of a run within its epoch: in its trainer, and in a checkpoint."""

import math
from typing import Any, NamedTuple

import pytorch_lightning as pl

from .versions import is_known


class Place(NamedTuple):
    """The position of training in its epoch.

    Attributes:
        batches: so many were trained on.
        begun: so many were begun; within a step, one more.
        last: is the newest of them the epoch's last.
    """

    batches: int
    begun: int
    last: bool


def place(trainer: pl.Trainer) -> Place:
    """The position of training, for code without a `batch_idx`, as when a datamodule is saved.

    An unknown version of Lightning is asked for what a checkpoint would hold, which takes longer:
    it has the loaders' states, too.
    """
    if is_known():
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        return Place(progress.current.processed, progress.current.ready, progress.is_last_batch)
    saved = trainer.fit_loop.state_dict()["epoch_loop.batch_progress"]
    return Place(saved["current"]["processed"], saved["current"]["ready"], saved["is_last_batch"])


def accumulates(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Do the gradients of this batch still wait for those of others, before a step is taken."""
    done = batch_idx + 1
    last = trainer.is_last_batch or done == trainer.num_training_batches
    to_the_end = trainer.strategy.handles_gradient_accumulation or not last
    return bool(done % trainer.accumulate_grad_batches) and to_the_end


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the batch that was trained on last, within the epoch.

    Under an unknown version of Lightning the settings decide. They do not tell of the validation of
    a run that stops early, nor of one that is due by the clock.
    """
    loop: Any = trainer.fit_loop
    if is_known():
        return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    epochs, every = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (epochs and (trainer.current_epoch + 1) % epochs):
        return False
    done = loop.batch_idx if epochs else loop.total_batch_idx
    return (done + 1) % (every or math.inf) == 0


def ended_its_epoch(checkpoint: dict[str, Any]) -> bool:
    """Was the checkpoint saved after the last batch of an epoch."""
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]


def begin_epoch_anew(checkpoint: dict[str, Any]) -> None:
    """Lets Lightning's counts in a checkpoint say that its epoch has just begun."""
    loops = checkpoint["loops"]["fit_loop"]
    loops["state_dict"].pop("combined_loader", None)  # what the old batches were
    progress = loops["epoch_loop.batch_progress"]
    if not ended_its_epoch(checkpoint):
        progress["current"] = dict.fromkeys(progress["current"], 0)
        progress["total"] = dict.fromkeys(progress["total"], progress["total"]["processed"])
