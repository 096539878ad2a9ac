"""Shorter steps, and the count of the epochs of a run that is resumed."""

from typing import Any

import pytorch_lightning as pl

from .versions import is_known


def shorten_steps(trainer: pl.Trainer) -> None:
    """Makes `trainer` leave out what a step of Lightning's does for hooks that nobody has written.

    That saves some 0.9 of the 6 ms that a step of a small model takes on a CPU. It is for modules
    with `training_step(batch, batch_idx) -> loss`. Every run is bit for bit the same. Lightning's
    own step remains where there is more to it: several processes, 16 bits, accumulated gradients, a
    profiler, an `optimizer_step` of the module's own; and under a version that is not known.
    """
    if not is_known():
        return
    from .epoch_loop import EpochLoop  # here, as its classes are made of private ones

    loop: Any = trainer.fit_loop
    loop.epoch_loop = EpochLoop(trainer, loop.epoch_loop.min_steps, loop.epoch_loop.max_steps)


def count_epochs_once(trainer: pl.Trainer) -> None:
    """Corrects a count: with `max_steps` Lightning, resumed from the end of an epoch, counts that
    epoch once more. A version that is not known goes on doing so.
    """
    if is_known():
        loop: Any = trainer.fit_loop
        loop._iteration_based_training = _no


def _no() -> bool:
    return False
