"""task=compare: the gradients of several estimators, on one model and the same images."""

import csv
import io
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from commandline.places import files
from models.base import VAEModule
from vae_lab import figures
from vae_lab.estimators import Estimator
from vae_lab.evaluation.measurement import collect
from vae_lab.gradients import Reference, bound_samples, encoder_gradients, reference, statistics
from vae_lab.storage.checkpoints import CHECKPOINTS
from vae_lab.storage.runs import writable

from . import build
from .start import typed_folder

FORMATS = {"test_elbo": ".2f", "lowest": ".2f", "highest": ".2f"}  # nats
Row = dict[str, Any]


class Trained(NamedTuple):
    """What a run with one of the estimators has shown.

    Attributes:
        elbo: of the test images.
        curve: the validation ELBO against steps and seconds.
        variances: of the gradient against steps, where the run has measured them
            (callbacks=gradient_probe).
    """

    elbo: float
    curve: list[dict[str, float]]
    variances: list[dict[str, float]]


def run(
    config: DictConfig,
    folder: Path,
    fit: Callable[[DictConfig], float],
    model: VAEModule | None,
) -> None:
    """Measures, and where it is asked for trains, with every estimator; writes table and figure.

    Args:
        folder: of the table, the figure, and the runs.
        fit: trains a run.
        model: one that is trained already; a fresh one otherwise.
    """
    asked = config.compare
    pl.seed_everything(config.seed, verbose=False)
    datamodule, fresh = build.datamodule_and_model(config)
    model = model or fresh
    datamodule.prepare_data()
    datamodule.setup("fit")
    x, y = collect(datamodule.train_dataloader(), asked.images)
    model.vae = model.vae.of_data(x, y)
    chosen = dict(_estimators(asked.estimators, model, x, asked.evaluations))
    estimators = {name: estimator for name, (_, estimator) in chosen.items()}
    writable(folder)
    _check_free(folder, [*chosen], asked)
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
    _say_unequal(rows, asked.evaluations)
    trained = {}
    _save(folder, rows)  # what was measured is kept, whatever happens to the training
    for row in rows if asked.train_epochs else ():
        name = row["estimator"]
        runs = [_train(config, fit, folder, name, chosen[name][0], seed) for seed in asked.seeds]
        trained[name] = runs
        row |= _elbos([run.elbo for run in runs])
    _save(folder, rows)
    _show(rows, all(truth.exact for truth in truths.values()))
    curves = {name: [run.curve for run in runs] for name, runs in trained.items()}
    figures.comparison(rows, curves, folder / "compare.png")
    written = ["compare.csv", "compare.png"]
    probed = {name: [run.variances for run in runs] for name, runs in trained.items()}
    if any(curve for curves in probed.values() for curve in curves):
        figures.variances(probed, folder / "variance.png")
        written.append("variance.png")
    print(f"files    {folder}: {', '.join(written)}")


def _estimators(
    names: list[str] | None, model: VAEModule, x: Tensor, evaluations: int | None = None
) -> Iterator[tuple[str, tuple[DictConfig, Estimator]]]:
    """The estimators asked for, or all that accept the model's latent and objective, with their
    settings: as in their files, or with as many samples as so many evaluations of f are."""
    known = files("estimator")
    for name in known if names is None else names:
        settings = OmegaConf.load(known[name])
        try:
            found = _contender(settings, model, x, evaluations)
        except ValueError:
            if names is None:
                continue  # does not accept it
            raise
        yield name, found


def _contender(
    settings: DictConfig, model: VAEModule, x: Tensor, evaluations: int | None
) -> tuple[DictConfig, Estimator]:
    """The settings, changed to the most samples that need no more evaluations, and the estimator.

    As many evaluations as samples, or a multiple, or some more: counted, they give the number.
    """
    estimator, count = _made(settings, model, x)
    if evaluations is None or "num_samples" not in estimator.evaluations:
        return settings, estimator
    given = settings.num_samples
    _, more = _made(OmegaConf.merge(settings, {"num_samples": given + 1}), model, x)
    samples = max(given + int((evaluations - count) // (more - count)), 1)
    settings = OmegaConf.merge(settings, {"num_samples": samples})
    return settings, _made(settings, model, x)[0]


def _made(settings: DictConfig, model: VAEModule, x: Tensor) -> tuple[Estimator, float]:
    """The estimator, and how often it evaluates f for one datum.

    In training mode: lazy layers become concrete, and a moving average gets its first value,
    without which a control variate would be measured far from f.
    """
    estimator = build.make(settings)
    with _decoded(model) as counts:
        model.objective(model.vae, estimator, x)
    return estimator, sum(counts) / len(x)


@contextmanager
def _decoded(model: VAEModule) -> Iterator[list[int]]:
    """Yields a list to which each call of the decoder appends its number of z."""
    counts: list[int] = []
    hook = model.vae.decoder.register_forward_hook(lambda m, i, output: counts.append(len(output)))
    try:
        yield counts
    finally:
        hook.remove()


def _measure(
    name: str, estimator: Estimator, model: VAEModule, x: Tensor, truth: Reference, repeats: int
) -> Row:
    samples = encoder_gradients(model.vae, model.objective, estimator, x, repeats)
    cost = _cost(estimator, model, x)
    return {"estimator": name, **vars(statistics(samples, truth)), **cost}


def _cost(estimator: Estimator, model: VAEModule, x: Tensor, steps: int = 10) -> Row:
    """Decoder evaluations for one datum, and the median time of a forward and backward pass."""
    seconds = []
    with _decoded(model) as counts:
        for _ in range(steps):
            began = time.perf_counter()
            model.objective(model.vae, estimator, x).objective.mean().neg().backward()
            seconds.append(time.perf_counter() - began)
    model.zero_grad()
    return {"evaluations": sum(counts) / steps / len(x), "seconds": median(seconds)}


def _say_unequal(rows: list[Row], evaluations: int | None) -> None:
    """Prints the estimators that could not be given as many evaluations as were asked for."""
    other = {r["estimator"]: r["evaluations"] for r in rows if r["evaluations"] != evaluations}
    if evaluations is not None and other:
        named = ", ".join(f"{name} {count:g}" for name, count in other.items())
        print(f"no num_samples gives these {evaluations} evaluations of f: {named}")


def _check_free(folder: Path, names: list[str], asked: DictConfig) -> None:
    """Refuses, before anything is measured, to train where a run is already."""
    for name, seed in itertools.product(names, asked.seeds if asked.train_epochs else ()):
        run = _run_dir(folder, name, seed)
        if any((run / kept).exists() for kept in ("metrics.csv", CHECKPOINTS)):
            raise ValueError(f"{run} holds a run already: type another run_dir")


def _run_dir(folder: Path, name: str, seed: int) -> Path:
    return folder / "runs" / f"{name}-{seed}"


def _train(
    config: DictConfig,
    fit: Callable[[DictConfig], float],
    folder: Path,
    name: str,
    settings: DictConfig,
    seed: int,
) -> Trained:
    """A run with this estimator."""
    config = config.copy()
    config.task, config.seed, config.checkpoint = "fit", seed, None
    config.estimator = settings
    config.run_dir = str(_run_dir(folder, name, seed))
    config.trainer.max_epochs = config.compare.train_epochs
    config.trainer.enable_progress_bar = False
    config.logger, config.report = {}, False
    with redirect_stdout(io.StringIO()):
        elbo = fit(config)
    print(f"{name}, seed {seed}: test/elbo {elbo:.2f}", flush=True)
    with (typed_folder(config) / "metrics.csv").open() as file:
        rows = [*csv.DictReader(file)]
    return Trained(elbo, _curve(rows), _variances(rows))


def _elbos(elbos: list[float]) -> Row:
    """The mean over the seeds, and the range."""
    return {"test_elbo": mean(elbos), "lowest": min(elbos), "highest": max(elbos)}


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


def _variances(rows: list[dict[str, str]]) -> list[dict[str, float]]:
    steps, values = figures.series(rows, "gradient/variance")
    return [{"step": step, "variance": v} for step, v in zip(steps, values, strict=True)]


def _save(folder: Path, rows: list[Row]) -> None:
    with (folder / "compare.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _show(rows: list[Row], exact: bool) -> None:
    against = "the exact gradient" if exact else "a long average"
    print(f"The encoder's gradient against {against}")
    columns = [Column(name, justify="right", no_wrap=True) for name in list(rows[0])[1:]]
    table = Table(Column("estimator", no_wrap=True), *columns)
    for row in rows:
        (_, name), *numbers = row.items()
        table.add_row(name, *(f"{value:{FORMATS.get(key, '.3g')}}" for key, value in numbers))
    # A number that is cut says nothing: rather let a narrow terminal break the lines.
    Console(width=max(Console().width, 140)).print(table)
