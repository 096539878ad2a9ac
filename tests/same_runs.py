"""Is a run that was stopped and resumed, bit for bit, the one that was not."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vae_lab.storage.checkpoints import load_checkpoint


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what a clock says."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not k.startswith("perf/")} for row in rows]


def state(folder: Path, name: str = "last") -> dict[str, Any]:
    """All that a checkpoint holds, but for the clock and what was typed to get there."""
    found = load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")
    del found["window"]["seconds"], found["config"]["run_dir"], found["config"]["resume"]
    return found


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """The places where two nested states are not the same bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield where
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}.{i}")
    elif a != b:
        yield where


def run_differences(whole: Path, resumed: Path) -> list[str]:
    """Weights, optimizer, averages, schedules, baselines, positions and logged metrics."""
    names = sorted(path.stem for path in (whole / "checkpoints").glob("*.ckpt"))
    found = [d for n in names for d in differences(state(whole, n), state(resumed, n), n)]
    return found + list(differences(metrics(whole), metrics(resumed), "metrics"))
