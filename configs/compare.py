"""task=compare: the gradients of several estimators, on one model and the same images."""

import csv
import io
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from models.base import VAEModule
from vae_lab import figures
from vae_lab.estimators import Estimator
from vae_lab.gradients import Reference, bound_samples, encoder_gradients, reference, statistics
from vae_lab.runs import writable

from . import build
from .settings_table import choices

ESTIMATORS = Path(__file__).parent / "estimator"
Row = dict[str, Any]


def run(config: DictConfig, fit: Callable[[DictConfig], float], model: VAEModule | None) -> None:
    """Measures, and where it is asked for trains, with every estimator; writes table and figure.

    Args:
        fit: trains a run.
        model: one that is trained already; a fresh one otherwise.
    """
    folder, asked = Path(config.run_dir), config.compare
    pl.seed_everything(config.seed, verbose=False)
    datamodule, fresh = build.datamodule_and_model(config)
    model = model or fresh
    datamodule.prepare_data()
    datamodule.setup("fit")
    x = next(iter(datamodule.train_dataloader()))[0][: asked.images]
    estimators = dict(_estimators(asked.estimators, model, x))
    writable(folder)
    torch.manual_seed(config.seed)
    counts = {name: bound_samples(model.objective, e) for name, e in estimators.items()}
    truths = {  # a bound of other samples is another expectation
        samples: reference(model.vae, model.objective, x, samples, asked.reference_repeats)
        for samples in sorted(set(counts.values()))
    }
    rows = [
        _measure(name, estimator, model, x, truths[counts[name]], asked.repeats)
        for name, estimator in estimators.items()
    ]
    curves = {name: [] for name in estimators}
    if asked.train_epochs:
        for name in estimators:
            curves[name] = [_train(config, fit, folder, name, seed) for seed in asked.seeds]
    _write(folder, rows, all(truth.exact for truth in truths.values()))
    figures.comparison(rows, {k: v for k, v in curves.items() if v}, folder / "compare.png")
    print(f"files    {folder}: compare.csv, compare.png")


def _estimators(
    names: list[str] | None, model: VAEModule, x: Tensor
) -> Iterator[tuple[str, Estimator]]:
    """The estimators asked for, or all that accept the model's latent and objective."""
    for name in choices("estimator") if names is None else names:
        estimator = build.make(OmegaConf.load(ESTIMATORS / f"{name}.yaml"))
        try:
            # In training mode: lazy layers become concrete, and a moving average gets its first
            # value, without which a control variate would be measured far from f.
            model.objective(model.vae, estimator, x)
        except ValueError:
            if names is None:
                continue  # does not accept it
            raise
        yield name, estimator


def _measure(
    name: str, estimator: Estimator, model: VAEModule, x: Tensor, truth: Reference, repeats: int
) -> Row:
    samples = encoder_gradients(model.vae, model.objective, estimator, x, repeats)
    cost = _cost(estimator, model, x)
    return {"estimator": name, **vars(statistics(samples, truth)), **cost}


def _cost(estimator: Estimator, model: VAEModule, x: Tensor, steps: int = 10) -> Row:
    """Decoder evaluations for one datum, and the median time of a forward and backward pass."""
    decoded: list[int] = []
    count = model.vae.decoder.register_forward_hook(
        lambda m, i, output: decoded.append(len(output))
    )
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        model.objective(model.vae, estimator, x).objective.mean().neg().backward()
        seconds.append(time.perf_counter() - began)
    count.remove()
    model.zero_grad()
    return {"evaluations": sum(decoded) / steps / len(x), "seconds": median(seconds)}


def _train(
    config: DictConfig, fit: Callable[[DictConfig], float], folder: Path, name: str, seed: int
) -> list[dict[str, float]]:
    """The validation ELBO against steps and seconds of a run with this estimator."""
    config = config.copy()
    config.task, config.seed, config.checkpoint = "fit", seed, None
    config.estimator = OmegaConf.load(ESTIMATORS / f"{name}.yaml")
    config.run_dir = str(folder / "runs" / f"{name}-{seed}")
    config.trainer.max_epochs = config.compare.train_epochs
    config.trainer.enable_progress_bar = False
    config.logger, config.report = {}, False
    with redirect_stdout(io.StringIO()):
        elbo = fit(config)
    print(f"{name}, seed {seed}: test/elbo {elbo:.2f}", flush=True)
    with (Path(config.run_dir) / "metrics.csv").open() as file:
        return _curve([*csv.DictReader(file)])


def _curve(rows: list[dict[str, str]]) -> list[dict[str, float]]:
    """The validations; the time of one that lies between two logged steps is interpolated."""
    timed = [row for row in rows if row["perf/seconds"]]
    steps, seconds = ([float(row[name]) for row in timed] for name in ("step", "perf/seconds"))
    return [
        {
            "step": int(row["step"]),
            "seconds": float(numpy.interp(int(row["step"]), steps, seconds)),
            "elbo": float(row["val/elbo"]),
        }
        for row in rows
        if row["val/elbo"]
    ]


def _write(folder: Path, rows: list[Row], exact: bool) -> None:
    with (folder / "compare.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    against = "the exact gradient" if exact else "a long average"
    print(f"The encoder's gradient against {against}")
    numbers = [Column(name, justify="right", no_wrap=True) for name in list(rows[0])[1:]]
    table = Table(Column("estimator", no_wrap=True), *numbers)
    for row in rows:
        name, *values = row.values()
        table.add_row(name, *(f"{value:.3g}" for value in values))
    # A number that is cut says nothing: rather let a narrow terminal break the lines.
    Console(width=max(Console().width, 110)).print(table)
