"""The columns of data that are no images: what they are called, and which of them are shown.

Values are in the user's units and categories have their names. NaN is missing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..likelihoods.kinds import KINDS
from ..optional import needs
from ..vae import VAE

with needs("train", __name__):
    from scipy.stats import rankdata

MOST = 12  # columns in a figure
LETTERS = 22  # of a name
SKEWED = 20.0  # the largest by the smallest value, without the outermost, of a logarithmic axis
OUTER = 0.005  # of the data at each end lie outside of the axis
LOOKED_AT = 1000  # columns that are compared with each other


class Shown(NamedTuple):
    """A column as it is drawn.

    Attributes:
        place: which one of the last axis.
        name: of the column.
        names: of its categories; of numbers none.
        whole: are its numbers integers.
    """

    place: int
    name: str
    names: list[str]
    whole: bool

    def value(self, number: float) -> str:
        """One of its values, to read."""
        if math.isnan(number):
            return "missing"
        if self.names:
            return self.names[min(max(round(number), 0), len(self.names) - 1)]
        return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def columns_of(vae: VAE) -> list[Shown]:
    """The columns of the last axis of a model's data."""
    found = []
    for place, column in enumerate(vae.likelihood.schema(vae.shape[-1])):
        kind = KINDS[column["kind"]]
        values = column.get("values") or (range(2) if kind.discrete and not kind.counts else ())
        whole = kind.counts or bool(column.get("integer"))
        names = [short(str(value)) for value in values]
        found.append(Shown(place, short(column["name"]), names, whole))
    return found


def short(name: str) -> str:
    """A name as text that fits, and that is no formula."""
    name = " ".join(name.split())
    return (name if len(name) <= LETTERS else f"{name[: LETTERS - 2]}..").replace("$", r"\$")


def draws(vae: VAE, count: int) -> Tensor:
    """Draws of x by a model that was given some y, [count, *X]."""
    vae = vae.with_drawn_labels(count)
    return vae.likelihood.sample(vae.decode(vae.draw(count)))


def most_tied(columns: Sequence[Shown], x: np.ndarray, most: int = MOST) -> list[Shown]:
    """So many columns, in their order: those that have the most to do with the others, where there
    are more."""
    if len(columns) <= most:
        return list(columns)
    some = columns[:LOOKED_AT]
    tied = np.square(correlations(x[:, [column.place for column in some]])).sum(0)
    return [some[place] for place in sorted(np.argsort(-tied, kind="stable")[:most])]


def correlations(x: np.ndarray) -> np.ndarray:
    """Spearman's rank correlations of columns x [N, F], each pair where both were observed."""
    ranks = rankdata(x, axis=0, nan_policy="omit")
    seen = ~np.isnan(x)
    centred = np.where(seen, ranks - _mean(ranks, seen), 0)
    seen = seen.astype(float)
    squares = np.square(centred).T @ seen  # of each column, over the rows of each other one
    return centred.T @ centred / np.sqrt(squares * squares.T).clip(1e-12)


def _mean(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.where(seen, values, 0).sum(0) / seen.sum(0).clip(1)


def movement(columns: Sequence[Shown], values: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """How far each column moves over [*, V, n], [C]: shares as they are, numbers in units of their
    deviation in the data x [N, D]."""
    moved = []
    for column, v in zip(columns, values, strict=True):
        if not column.names:
            data = x[:, column.place]
            if is_skewed(data) and v.min() > 0:
                data, v = np.log(data), np.log(v)
            v = v / max(np.nanstd(data), 1e-12)
        moved.append(np.ptp(v, axis=-2).max() if v.size else 0.0)
    return np.array(moved)


def is_skewed(values: np.ndarray) -> bool:
    """Whether values [N] are read on a logarithmic axis: positive, and of very different sizes."""
    values = values[~np.isnan(values)]
    if not len(values) or values.min() <= 0:
        return False
    low, high = np.quantile(values, [OUTER, 1 - OUTER])
    return bool(high > SKEWED * low)


def share_of_range(value: float, data: np.ndarray) -> float:
    """Where a value lies between the least and the largest one of the data [N], from 0 to 1."""
    if is_skewed(data) and value > 0:
        value, data = math.log(value), np.log(data)
    known = data[~np.isnan(data)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    return float(np.clip((value - low) / max(high - low, 1e-12), 0, 1))


def numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()
