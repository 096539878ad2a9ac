"""Errors of data with columns, such as tables and series, in the units of each column."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..likelihoods.kinds import KINDS
from ..memory import in_parts
from .measurement import Measurement

HIDDEN = 0.1  # of the values that were observed, which are then imputed
IMPUTED = 2000  # data at most
EACH = 30  # columns that have a number of their own


class Errors(NamedTuple):
    """How far the values of a column are from others.

    Attributes:
        name: of the column.
        of_numbers: are they numbers, and no categories.
        error: root mean squared error, in the column's unit; of categories the share of the right.
        without: the same by what needs no model: the mean, the most frequent category.
        deviation: of the column.
    """

    name: str
    of_numbers: bool
    error: float
    without: float
    deviation: float


def reconstructions(m: Measurement) -> None:
    """How far the data is from what the model gives for it at the most probable z."""
    m.progress("columns", 0, 1)
    found = [part.reconstruct(x).cpu() for part, x in in_parts(m.settled, m.x, m.batch())]
    columns = list(_errors(m, m.x, torch.cat(found), ~m.x.isnan()))
    _add(m, "reconstruction", columns, "at the most probable z")
    for column in columns if len(columns) <= EACH else ():
        if column.of_numbers:
            note = f"of the reconstruction, in the column's unit; {column.without:.4g} by its mean"
            m.add(f"rmse_{column.name}", column.error, note=note)
        else:
            note = f"of the reconstruction; {column.without:.2f} by its most frequent value"
            m.add(f"accuracy_{column.name}", column.error, note=note)
    m.progress("columns", 1, 1)


def imputation(m: Measurement) -> None:
    """How far values that are hidden from the model are from what it fills in for them."""
    m.progress("imputation", 0, 1)
    m.draw_anew("imputation")
    x = m.x[:IMPUTED]
    hidden = (torch.rand(x.shape) < HIDDEN) & ~x.isnan()
    seen, of_x = torch.where(hidden, math.nan, x), m.known.rows(slice(len(x)))
    found = [part.impute(some).cpu() for part, some in in_parts(of_x, seen, m.batch())]
    how = f"of {HIDDEN:.0%} of the observed values, that were hidden"
    _add(m, "imputation", list(_errors(m, x, torch.cat(found), hidden)), how)
    m.progress("imputation", 1, 1)


def _errors(m: Measurement, x: Tensor, found: Tensor, where: Tensor) -> Iterator[Errors]:
    """Of each column that has values in x [N, *X] there."""
    for place, column in enumerate(m.vae.likelihood.schema(m.vae.shape[-1])):
        here, known = where[..., place], x[..., place]
        if not here.any():
            continue
        true, got = (part[..., place][here].double() for part in (x, found))
        known = known[~known.isnan()].double()
        yield _of_column(column, true, got, known)


def _of_column(column: dict[str, Any], true: Tensor, got: Tensor, known: Tensor) -> Errors:
    kind, name = KINDS[column["kind"]], str(column["name"])
    if kind.discrete and not kind.counts:
        usual = known.mode().values
        right, without = ((true == other).double().mean().item() for other in (got.round(), usual))
        return Errors(name, False, right, without, 1.0)
    mean, deviation = known.mean(), known.std(correction=0).item()
    error, without = ((true - o).square().mean().sqrt().item() for o in (got, mean))
    return Errors(name, True, error, without, deviation)


def _add(m: Measurement, what: str, columns: list[Errors], how: str) -> None:
    """One number for all columns of numbers, and one for all of categories."""
    numbers = [c for c in columns if c.of_numbers and c.deviation > 0]
    if numbers:
        error = _root_mean([c.error / c.deviation for c in numbers])
        without = _root_mean([c.without / c.deviation for c in numbers])
        note = f"{how}; in units of each column's deviation, {without:.2f} by the mean"
        m.add(f"{what}_rmse", error, note=note)
    categories = [c for c in columns if not c.of_numbers]
    if categories:
        right = sum(c.error for c in categories) / len(categories)
        without = sum(c.without for c in categories) / len(categories)
        note = f"{how}; of categories, {without:.2f} by the most frequent"
        m.add(f"{what}_accuracy", right, note=note)


def _root_mean(errors: list[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))
