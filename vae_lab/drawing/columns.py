"""Panels of single columns: how their values are distributed, met again, and move with z.

Values are in the user's units and categories have their names. NaN is missing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..figures import COLOURS, DPI, logarithmic, plain
from ..likelihoods.kinds import KINDS
from ..optional import needs
from ..vae import VAE

with needs("train", __name__):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from scipy.stats import rankdata

MOST = 12  # columns in a figure
LETTERS = 22  # of a name
STEPS = 30  # different counts that have a bar each
BINS = 30
SKEWED = 20.0  # the ratio of the largest to the smallest value, without the outermost, in a log axis
OUTER = 0.005  # of the data at each end lie outside of the axis
NAMED = 6  # categories whose names there is room for
CATEGORIES = 10  # that are shown on their own
LOOKED_AT = 1000  # columns that are compared with each other
ROOM = 0.2  # of a stack, for a name
INSIDE: dict[str, Any] = {"fontsize": 6, "color": "white", "weight": "bold"}
DATA, MODEL = COLOURS[5], COLOURS[1]
SHARES = [*COLOURS[:6], "#999999", "#882255", "#44AA99", "#DDCC77"]  # of categories


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
        return f"{number:.4g}"


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


def panels(
    rows: int, columns: int, width: float = 2.4, height: float = 1.7
) -> tuple[Figure, np.ndarray]:
    """A figure of so many small panels, and their axes [rows, columns]."""
    size = (max(width * columns, 4.0), height * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        plain(axis)
        axis.tick_params(labelsize="x-small")
    return figure, axes


def grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, four in a row."""
    columns = min(count, 4)
    figure, axes = panels(-(-count // columns), columns)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


# Which columns are shown


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


# Panels


def distribution(axis: Axes, column: Shown, data: np.ndarray, drawn: np.ndarray) -> None:
    """How the values of the data [N], and those of the model's draws [M], are distributed."""
    missing = float(np.isnan(data).mean())
    axis.set_title(column.name + f"  {missing:.0%} missing" * (missing > 0), fontsize="small")
    axis.set_yticks([])
    data, drawn = (part[~np.isnan(part)] for part in (data, drawn))
    if column.names:
        _shares(axis, column, data, drawn)
        return
    edges = _edges(column, data)
    looks = {"fill": True, "color": DATA}, {"color": MODEL}
    for values, look in zip((data, drawn), looks, strict=True):
        axis.stairs(np.histogram(values, edges)[0] / max(len(values), 1), edges, **look)
    axis.set_xlim(edges[0], edges[-1])
    if is_skewed(data):
        logarithmic(axis)
    elif column.whole:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _shares(axis: Axes, column: Shown, data: np.ndarray, drawn: np.ndarray) -> None:
    count = len(column.names)
    data, drawn = (np.bincount(p.round().astype(int), minlength=count) / max(len(p), 1) for p in (data, drawn))
    names = column.names
    if count > CATEGORIES:  # the rarer ones are one bar
        order = np.argsort(-data, kind="stable")
        first, rest = order[: CATEGORIES - 1], order[CATEGORIES - 1 :]
        data, drawn = (np.append(p[first], p[rest].sum()) for p in (data, drawn))
        names = [*(names[place] for place in first), f"{len(rest)} others"]
    axis.bar(range(len(names)), data, color=DATA)
    axis.stairs(drawn, np.arange(len(names) + 1) - 0.5, baseline=None, color=MODEL, lw=1.5)
    name_ticks(axis, names)


def name_ticks(axis: Axes, names: Sequence[str]) -> None:
    """The names of categories below an axis; aslant where they are long, and cut."""
    long = sum(map(len, names)) > 24
    cut = [name if len(name) <= 10 else f"{name[:9]}." for name in names]
    slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axis.set_xticks(range(len(names)), cut, **slant)


def _edges(column: Shown, values: np.ndarray) -> np.ndarray:
    """Of bins for all values but the outermost: of skewed ones by their logarithm, of whole ones
    with as many in each."""
    bins = min(BINS, max(8, int(2 * len(values) ** (1 / 3))))
    low, high = np.quantile(values, [OUTER, 1 - OUTER]) if len(values) else (0.0, 1.0)
    if is_skewed(values):
        return np.geomspace(low, high, bins + 1)
    if column.whole:
        step = max(round((high - low) / bins), 1) if high - low > STEPS else 1
        return np.arange(math.floor(low), math.ceil(high) + 1 + step, step) - 0.5
    margin = 0.05 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1)


def is_skewed(values: np.ndarray) -> bool:
    """Whether values [N] are read on a logarithmic axis: positive, and of very different sizes."""
    values = values[~np.isnan(values)]
    if not len(values) or values.min() <= 0:
        return False
    low, high = np.quantile(values, [OUTER, 1 - OUTER])
    return bool(high > SKEWED * low)


def agreement(axis: Axes, column: Shown, data: np.ndarray, found: np.ndarray) -> None:
    """The true values [N] against those that a model gives instead: numbers as points, categories
    as the shares of what became of each."""
    seen = ~np.isnan(data)
    data, found = data[seen], found[seen]
    if column.names:
        _confusion(axis, column, data.round().astype(int), found.round().astype(int))
        return
    axis.scatter(data, found, s=5, color=COLOURS[0], alpha=0.35, linewidths=0)
    if len(data):
        axis.plot(*[[data.min(), data.max()]] * 2, color="#777777", lw=0.8, zorder=0)
    both = np.stack([data, found])
    if is_skewed(data) and (found > 0).all():
        both = np.log(both)
        logarithmic(axis)
        logarithmic(axis, up=True)
    known = len(data) > 1 and both.std(1).min() > 0
    r = f"  r = {np.corrcoef(both)[0, 1]:.2f}" if known else ""
    axis.set_title(column.name + r, fontsize="small")


def _confusion(axis: Axes, column: Shown, data: np.ndarray, found: np.ndarray) -> None:
    count = len(column.names)
    table = np.zeros((count, count))
    np.add.at(table, (found, data), 1)
    seen = table.sum(0)
    right, most = np.trace(table) / max(len(data), 1), seen.max() / max(len(data), 1)
    axis.set_title(f"{column.name}  {right:.0%} right", fontsize="small")
    axis.imshow(table / seen.clip(1), cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    axis.grid(False)
    if count <= NAMED:
        name_ticks(axis, column.names)
        axis.set_yticks(range(count), [name[:10] for name in column.names])
        for true in range(count):
            for other in range(count):
                share = table[other, true] / max(seen[true], 1)
                colour = "white" if share > 0.5 else "black"
                axis.text(true, other, f"{share:.0%}", ha="center", va="center", fontsize=6, color=colour)


def way(axis: Axes, column: Shown, values: np.ndarray, joined: bool = True) -> None:
    """What is expected of a column, [V, n], as z moves over V steps: a line of numbers, or the
    shares of categories on top of each other.

    Args:
        joined: is there something between the steps.
    """
    if column.names:
        _stack(axis, column, both_shares(values), joined)
    else:
        line = "-" if joined else ""
        axis.plot(values[:, 0], line, color=COLOURS[0], marker="o", markersize=2.5 if joined else 4)


def _stack(axis: Axes, column: Shown, shares: np.ndarray, joined: bool) -> None:
    steps, tops = np.arange(len(shares)), shares.cumsum(1)
    for k in range(shares.shape[1]):
        low, colour = tops[:, k] - shares[:, k], SHARES[k % len(SHARES)]
        if joined:
            axis.fill_between(steps, low, tops[:, k], color=colour, linewidth=0)
        else:
            axis.bar(steps, shares[:, k], bottom=low, color=colour)
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    taken = np.zeros_like(tops[:, 0])  # up to where there are names already
    for k, name in enumerate(column.names):
        inner = shares[1:-1, k] if len(shares) > 2 else shares[:, k]
        at = int(inner.argmax()) + (len(shares) > 2)
        middle = tops[at, k] - shares[at, k] / 2
        beside = slice(max(at - 2, 0), at + 3)
        if shares[at, k] > ROOM and middle > taken[beside].max():
            axis.text(at, middle, name[:12], ha="center", va="center", **INSIDE)
            taken[beside] = middle + ROOM / 2


def same_axis(axes: Sequence[Axes], data: np.ndarray) -> None:
    """Numbers of one column in several panels, on an axis that shows half of the data [N] at
    least."""
    limits = [axis.get_ylim() for axis in axes]
    if len(known := data[~np.isnan(data)]):
        limits.append(tuple(np.quantile(known, [0.25, 0.75])))
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    lowest = min(axis.dataLim.ymin for axis in axes)
    for axis in axes:
        if is_skewed(data) and lowest > 0:
            axis.set_ylim(max(low, lowest / 1.2), high)
            logarithmic(axis, up=True)
        else:
            axis.set_ylim(low, high)


def both_shares(values: np.ndarray) -> np.ndarray:
    """Of two categories the model says one probability, [*, 1] -> [*, 2]."""
    return np.concatenate([1 - values, values], -1) if values.shape[-1] == 1 else values


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


def numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()
