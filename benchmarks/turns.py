"""What runs in turn, so that what disturbs the machine disturbs it all alike; and its table."""

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
