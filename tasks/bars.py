"""Bars on a terminal that show how far a task is, and a line beforehand of what will take long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LONG = 30.0  # seconds of a part, from which on it is said beforehand


@contextmanager
def bars(unit: str = "images") -> Iterator[Callable[[str, int, int], None]]:
    """Shows what it is told: a part, how many are done, of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    began: dict[str, float] = {}
    tasks: dict[str, Any] = {}
    said: set[str] = set()
    console = Console()
    hidden = not console.is_terminal  # which would leave an empty line
    with Bars(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as shown:

        def progress(part: str, done: int, total: int) -> None:
            if rank_zero_only.rank:
                return
            if part not in tasks:
                began[part], tasks[part] = time.perf_counter(), shown.add_task(part, total=total)
            shown.update(tasks[part], completed=done)
            seconds = (time.perf_counter() - began[part]) * total / max(done, 1)
            if 0 < done < total and part not in said and seconds > LONG:
                shown.console.print(f"{part}: {total} {unit}, about {_duration(seconds)}")
            if done:
                said.add(part)

        yield progress


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
