"""Shows a run's progress: one line per validation, and on a terminal a bar beneath the lines."""

import math
import sys
import time
from typing import Any, cast

import pytorch_lightning as pl
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from .training import Training

REFRESH_SECONDS = 0.1


class Progress(pl.callbacks.ProgressBar):
    """Prints one line per validation, and on a terminal also shows a bar.

        epoch 3/20  step 1200  val/elbo -103.21  12,345 images/s  ETA 0:32

    The bar is redrawn at most ten times a second, from numbers that are on the host already:
    `pl_module.latest`, the training metrics that were read last. The device is waited for once per
    validation, so that the line's speed is that of work done and not of work queued.

    Being a Lightning progress bar it takes the place of Lightning's own: `enable_progress_bar`
    stays True.

    Args:
        metric: The validation metric in the line.
        train_metric: The key of `pl_module.latest` in the bar.
    """

    def __init__(self, metric: str = "val/elbo", train_metric: str = "train/elbo") -> None:
        super().__init__()
        self.metric = metric
        self.train_metric = train_metric
        self._enabled = True
        self._pace: _Pace | None = None  # while training, on the process that prints
        self._bar: Bar | None = None
        self._drawn = -math.inf

    def disable(self) -> None:
        """Prints nothing; Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Prints again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        unit = getattr(getattr(trainer, "datamodule", None), "unit", "images")
        self._pace = _Pace(trainer.global_step, trainer.estimated_stepping_batches, unit)
        if sys.stdout.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                auto_refresh=False,  # no thread beside the training loop
                transient=True,  # the lines remain, the bar does not
            )
            self._bar.add_task(_epoch(trainer), total=_batches(trainer), numbers="")
            self._bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            # Not drawn before it is time: an epoch may have one batch.
            total, epoch = _batches(trainer), _epoch(trainer)
            self._bar.update(self._bar.task_ids[0], total=total, completed=0, description=epoch)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._pace is None:
            return
        self._pace.images += _images(batch, trainer.world_size)
        if self._bar is not None and time.monotonic() - self._drawn >= REFRESH_SECONDS:
            latest = cast(Training, pl_module).latest
            numbers = self._numbers(self.train_metric, latest, trainer, self._pace)
            self._bar.update(self._bar.task_ids[0], completed=batch_idx + 1, numbers=numbers)
            self._bar.refresh()
            self._drawn = time.monotonic()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._pace is not None:
            if pl_module.device.type != "cpu":
                torch.accelerator.synchronize()
            self._pace.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._pace is not None:
            step = f"step {trainer.global_step}"
            if trainer.max_epochs in (None, -1) and trainer.max_steps != -1:
                step += f"/{trainer.max_steps}"
            numbers = self._numbers(self.metric, trainer.callback_metrics, trainer, self._pace)
            print("  ".join([_epoch(trainer), step, numbers]), flush=True)  # above a bar, too
            self._pace.resume()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # Before the error is printed.
        self._close()

    def _numbers(self, metric: str, values: Any, trainer: pl.Trainer, pace: "_Pace") -> str:
        value = [f"{metric} {float(values[metric]):.2f}"] if metric in values else []
        return "  ".join([*value, pace.speed(), f"ETA {pace.left(trainer.global_step)}"])

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._pace = None


class _Pace:
    """Images per second of training alone, and the time left, validations included.

    Args:
        step: The optimizer step that training starts from; not 0 after a resume.
        total: The optimizer step it ends at; infinite if nobody knows.
        unit: What the data are: images, or examples of another kind.
    """

    def __init__(self, step: int, total: float, unit: str) -> None:
        self.began = time.monotonic()
        self.first = step
        self.unit = unit
        self.total = total
        self.resume()

    def pause(self) -> None:
        self.paused: float | None = time.monotonic()

    def resume(self) -> None:
        """Measures the speed from here on."""
        self.images = 0
        self.resumed = time.monotonic()
        self.paused = None

    def speed(self) -> str:
        until = time.monotonic() if self.paused is None else self.paused
        return f"{self.images / max(until - self.resumed, 1e-9):,.0f} {self.unit}/s"

    def left(self, step: int) -> str:
        done = step - self.first
        if done <= 0 or math.isinf(self.total):
            return "-:--"
        seconds = (time.monotonic() - self.began) / done * max(self.total - step, 0)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _epoch(trainer: pl.Trainer) -> str:
    known = trainer.max_epochs not in (None, -1)
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")


def _batches(trainer: pl.Trainer) -> int | None:
    """In an epoch, where that is known."""
    batches = trainer.num_training_batches
    return int(batches) if math.isfinite(batches) else None


def _images(batch: Any, world_size: int) -> int:
    """Images in the global batch, which our batches know; another loader's has (x, ...)."""
    size = getattr(batch, "size", None)
    return size if isinstance(size, int) else len(batch[0]) * world_size
