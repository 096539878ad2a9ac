"""What runs in turn, so that what disturbs the machine disturbs it all alike; and its table."""

import csv
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

Train = Callable[[Callable[[], None]], None]  # trains for ever, and calls its argument every step


class _Over(BaseException):
    """Ends a contestant's training in the middle."""


class Contestant(threading.Thread):
    """One training loop, which goes on for `steps` steps whenever it is its turn."""

    def __init__(self, train: Train, steps: int) -> None:
        super().__init__(daemon=True)
        self.train, self.steps = train, steps
        self._mine, self._others = threading.Semaphore(0), threading.Semaphore(0)
        self._count, self._began, self._seconds = 0, 0.0, 0.0
        self._over, self._error = False, None
        self.start()

    def turn(self) -> float:
        """Seconds of a step."""
        self._mine.release()
        self._others.acquire()
        if self._error is not None:
            raise self._error
        return self._seconds / self.steps

    def end(self) -> None:
        self._over = True
        self.turn()
        self.join()

    def run(self) -> None:
        self._mine.acquire()
        self._began = time.perf_counter()
        try:
            self.train(self.step)
        except _Over:
            pass
        except BaseException as error:  # told by the thread that waits
            self._error = error
        finally:
            self._others.release()

    def step(self) -> None:
        self._count += 1
        if self._count % self.steps == 0:
            self._seconds = time.perf_counter() - self._began
            self._others.release()
            self._mine.acquire()
            if self._over:
                raise _Over
            self._began = time.perf_counter()


class Turn(pl.Callback):
    """Ends a step of the contestant in whose thread Lightning trains."""

    def on_train_batch_end(self, *_: object) -> None:
        threading.current_thread().step()


def race(trains: dict[str, Train], steps: int, rounds: int, warm: int = 2) -> dict[str, float]:
    """Median seconds of a step, for each."""
    contestants = {name: Contestant(train, steps) for name, train in trains.items()}
    seconds = {name: [] for name in trains}
    for turn in range(warm + rounds):
        for name, contestant in contestants.items():
            taken = contestant.turn()
            if turn >= warm:
                seconds[name].append(taken)
    for contestant in contestants.values():
        contestant.end()
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def medians(runs: dict[str, Callable[[], Any]], rounds: int, warm: int = 2) -> dict[str, float]:
    """Median seconds of each of these calls."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm + rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """A CSV table."""
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
