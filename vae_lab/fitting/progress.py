"""Shows how far a training is: a bar on a terminal, and else a line every few seconds."""

import importlib.util
import sys
import time
from contextlib import suppress
from typing import Any

from .training import Training

REDRAW_SECONDS = 0.1
LINE_SECONDS = 5.0


class Progress:
    """A bar if rich is installed and can draw one, or lines.

        epoch 12/300  val/elbo -103.21  best -102.98  ETA 0:32

    Args:
        training: what is shown.
        shown: False: nothing is.
    """

    def __init__(self, training: Training, shown: bool) -> None:
        self.total = training.plan.epochs * len(training.train)
        self.first, self.began = training.at.step, time.monotonic()
        self.shown, self.drawn = shown, self.began
        self._bar: Any = _bar() if shown else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=self.total, completed=self.first, numbers="")
            self._bar.start()

    def update(self, training: Training) -> None:
        """Draws, if it is time to; waits for no device."""
        now = time.monotonic()
        wait = LINE_SECONDS if self._bar is None else REDRAW_SECONDS
        if not self.shown or now - self.drawn < wait:
            return
        self.drawn = now
        if self._bar is None:
            self._print(f"{self._text(training)}  ETA {self._left(training.at.step)}")
        else:
            self._bar.update(self._task, completed=training.at.step, numbers=self._text(training))
            self._bar.refresh()

    def close(self, training: Training, took_up: str = "") -> None:
        """Ends the bar, and says in a line what came out."""
        if self._bar is not None:
            self._bar.stop()
        seconds = time.monotonic() - self.began
        if self.shown and training.at.step > self.first:
            self._print(f"{self._text(training)}  {seconds:.0f} s{took_up}")

    def _text(self, training: Training) -> str:
        at = training.at
        parts = [f"epoch {min(at.epoch + (at.batch > 0), training.plan.epochs)}"]
        parts[0] += f"/{training.plan.epochs}"
        last = at.history[-1] if at.history else {}
        name = "val/elbo" if "val/elbo" in last else "train/elbo"
        if name in last:
            parts.append(f"{name} {last[name]:.2f}")
        if "val/elbo" in last:
            parts.append(f"best {at.best:.2f}")
        return "  ".join(parts)

    def _left(self, step: int) -> str:
        done = max(step - self.first, 1)
        seconds = round((time.monotonic() - self.began) / done * (self.total - step))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return (
            f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
        )

    def _print(self, line: str) -> None:
        print(line, flush=True)


def _bar() -> Any:
    """A bar of rich's; None where there is no place to draw it, or no rich."""
    notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    if not (sys.stdout.isatty() or notebook):
        return None
    with suppress(ImportError):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(),  # rich's own stays as it was when it was made, a terminal or none
            auto_refresh=False,  # no thread beside the training
            transient=True,
        )
        return None if bar.console.is_dumb_terminal else bar
    return None
