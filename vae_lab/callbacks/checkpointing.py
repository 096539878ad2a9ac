"""Saves a run when it is time to, and stops it when it is asked to stop."""

import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytorch_lightning as pl
from lightning_fabric.plugins.io import CheckpointIO

from ..lightning import accumulates, place, validation_follows
from ..storage.checkpoints import find_checkpoint, read_checkpoint, save_checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """The process was asked to stop; its exit code is 128 + the signal's number, as a shell's."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class DurableIO(CheckpointIO):
    """Lightning's saving and loading by :mod:`vae_lab.storage.checkpoints`.

    Args:
        keep: so many of the newest `last.ckpt`; of other names one.
        failures: saves that may fail in a row, on a full disk say; each is reported on stderr, and
            training goes on. One more ends the run with an OSError.

    Attributes:
        failed: so many of the latest saves did.
    """

    def __init__(self, keep: int = 2, failures: int = 3) -> None:
        if keep < 1 or failures < 0:
            raise ValueError(
                f"keep must be at least 1 and failures not negative, got {keep} and {failures}"
            )
        self.keep = keep
        self.failures = failures
        self.failed = 0

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        try:
            save_checkpoint(checkpoint, path, self.keep if path.stem == "last" else 1)
            self.failed = 0
        except OSError as error:
            self.failed += 1
            left = self.failures - self.failed
            message = f"{error.strerror}; {_newest(path)}"
            if left < 0:
                run = path.parent.parent
                raise OSError(f"{message}; make room, then type resume={run}") from error
            print(f"{message}; training goes on ({left} more may fail)", file=sys.stderr)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Always on the CPU and never running code, whatever is asked."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _newest(path: Path) -> str:
    try:
        return f"the last whole checkpoint is {find_checkpoint(path.parent.parent, 'last')}"
    except (FileNotFoundError, ValueError):
        return "there is no checkpoint yet"


class Checkpointing(pl.callbacks.Checkpoint):
    """Saves `last.ckpt` so that a resumed run cannot be told from one that was never stopped.

    At every epoch's end and, where asked for, within. A checkpoint has to be of a moment
    that Lightning can go on from: after an optimizer step, when its metrics are logged; after the
    validation, if one follows the step. `best.ckpt` is the one with the best validation.

    SIGTERM and Ctrl-C save at the next such moment and end the process; a second one ends it at
    once. Several processes follow the first, and agree every `log_every_n_steps` batches, when the
    host waits for the device anyway.

    Args:
        folder: of the checkpoints, in the run's folder.
        every_n_steps: also save after so many optimizer steps.
        every_minutes: also save when so much time has passed.
        monitor: what is highest in the best checkpoint; None: nothing, it is that of the newest
            validation.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
        monitor: str | None = "val/elbo",
    ) -> None:
        super().__init__()
        for name, value in {"every_n_steps": every_n_steps, "every_minutes": every_minutes}.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.monitor = monitor
        self.best = -math.inf
        self._saved_step = 0
        self._saved_at = 0.0
        self._asked = 0  # the number of the signal
        self._ends = False  # as soon as a step is taken
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # The processes that started later may have thought of another folder.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._handle(self._remember)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._end_with_a_step(trainer, batch_idx)
        self._within(trainer, batch_idx, validated=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        batch_idx = place(trainer).begun - 1
        self._end_with_a_step(trainer, batch_idx)
        if not trainer.global_step:
            return
        if self.monitor is None:
            trainer.save_checkpoint(self.folder / "best.ckpt")
        elif (value := trainer.callback_metrics.get(self.monitor)) is not None:
            self._keep_best(trainer, value.item())
        self._within(trainer, batch_idx, validated=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        if asked := trainer.strategy.broadcast(self._asked):
            self._stop(trainer, asked)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._release_handlers()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning would note a SIGTERM and go on, and answer Ctrl-C with nothing.
        self._handle(self._leave)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._release_handlers()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._release_handlers()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _keep_best(self, trainer: pl.Trainer, value: float) -> None:
        if value <= self.best:
            return
        before, self.best = self.best, value
        trainer.save_checkpoint(self.folder / "best.ckpt")
        if _failed(trainer):  # a later one is the best that there is
            self.best = before

    def _within(self, trainer: pl.Trainer, batch_idx: int, validated: bool) -> None:
        """Saves in the middle of an epoch, if it is time to and a moment to go on from."""
        late, asked = self._agreed(trainer, batch_idx)
        every = self.every_n_steps
        # What ends training within an epoch may be lifted: the rest of the epoch is then to follow.
        over = trainer.should_stop or trainer.global_step >= trainer.max_steps > -1
        due = late or asked or over or (every and trainer.global_step % every == 0)
        if not due or not _is_whole(trainer, batch_idx, validated):
            return
        self._save(trainer)
        if asked:
            self._stop(trainer, asked)

    def _end_with_a_step(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Lets training stop after a step only: of one that it is in, the batches would be lost."""
        if accumulates(trainer, batch_idx):
            self._ends |= trainer.should_stop
            trainer.should_stop = False
        elif self._ends:
            trainer.should_stop, self._ends = True, False

    def _agreed(self, trainer: pl.Trainer, batch_idx: int) -> tuple[bool, int]:
        """Whether it is time to save, and the signal to stop or 0; the same in all processes."""
        minutes = (time.monotonic() - self._saved_at) / 60
        own = self.every_minutes is not None and minutes >= self.every_minutes, self._asked
        if trainer.world_size == 1:
            return own
        if (batch_idx + 1) % cast(Any, trainer).log_every_n_steps:
            return False, 0
        return trainer.strategy.broadcast(own)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self._saved_step:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _handle(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, handler) for number in SIGNALS}

    def _release_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._leave(number, frame)
        self._asked = number

    def _leave(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    def _stop(self, trainer: pl.Trainer, number: int) -> None:
        if trainer.is_global_zero:
            print(
                f"{signal.Signals(number).name} at step {trainer.global_step}: "
                f"{_newest(self.folder / 'last.ckpt')}; to go on, type resume={self.folder.parent}",
                file=sys.stderr,
            )
        raise Interrupted(number)


def _is_whole(trainer: pl.Trainer, batch_idx: int, validated: bool) -> bool:
    """Whether a step has been taken with all that is to follow it within the epoch.

    Not so at the epoch's end, which is another moment to save.
    """
    if trainer.is_last_batch or accumulates(trainer, batch_idx):
        return False
    return validated or not validation_follows(trainer)


def _failed(trainer: pl.Trainer) -> bool:
    """Did the first process, which writes, find no room for the latest checkpoint."""
    return trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failed", 0) > 0)
