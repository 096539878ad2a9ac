"""Panels of single columns: how their values are distributed, met again, and move with z."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..figures import COLOURS, DPI, plain
from ..optional import needs
from .columns import OUTER, Shown, is_skewed

with needs("train", __name__):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

STEPS = 30  # different counts that have a bar each
BINS = 30
NAMED = 6  # categories whose names there is room for
CATEGORIES = 10  # that are shown on their own
ROOM = 0.2  # of a stack, for a name
INSIDE: dict[str, Any] = {"fontsize": 6, "color": "white", "weight": "bold"}
DATA, MODEL = COLOURS[5], COLOURS[1]
SHARES = [*COLOURS[:6], "#999999", "#882255", "#44AA99", "#DDCC77"]  # of categories


def sheet(
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
    figure, axes = sheet(-(-count // columns), columns)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


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
    looks: list[dict[str, Any]] = [{"fill": True, "color": DATA}, {"color": MODEL}]
    for values, look in zip((data, drawn), looks, strict=True):
        axis.stairs(np.histogram(values, edges)[0] / max(len(values), 1), edges, **look)
    axis.set_xlim(edges[0], edges[-1])
    if is_skewed(data):
        logarithmic(axis)
    elif column.whole:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _shares(axis: Axes, column: Shown, data: np.ndarray, drawn: np.ndarray) -> None:
    count = len(column.names)
    data, drawn = (
        np.bincount(p.round().astype(int), minlength=count) / max(len(p), 1) for p in (data, drawn)
    )
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
    axis.set_xticks(range(len(names)), cut)
    if long:
        for label in axis.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


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
    right = np.trace(table) / max(len(data), 1)
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
                axis.text(
                    true, other, f"{share:.0%}", ha="center", va="center", fontsize=6, color=colour
                )


def way(axis: Axes, column: Shown, values: np.ndarray, joined: bool = True) -> None:
    """What is expected of a column, [V, n], as z moves over V steps: a line of numbers, or the
    shares of categories on top of each other.

    Args:
        joined: is there something between the steps.
    """
    if column.names:
        _stack(axis, column, _shares_of_all(values), joined)
    else:
        look: dict[str, Any] = {"marker": "o", "ms": 2.5}
        if not joined:
            look = {"marker": "_", "ms": 12, "mew": 2, "lw": 0}
        axis.plot(values[:, 0], color=COLOURS[0], **look)


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


def logarithmic(axis: Axes, up: bool = False) -> None:
    """Across, or up: with few numbers, and these short."""
    numbers = axis.yaxis if up else axis.xaxis
    (axis.set_yscale if up else axis.set_xscale)("log")
    low, high = axis.get_ylim() if up else axis.get_xlim()
    steps = (1,) if high > 30 * low else (1, 3) if high > 5 * low else (1, 1.5, 2, 3, 5)
    numbers.set_major_locator(LogLocator(subs=steps))
    numbers.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
    numbers.set_minor_formatter(NullFormatter())


def brief(value: float) -> str:
    """A number that is as short as it can be read."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or abs(value) == size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


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


def _shares_of_all(values: np.ndarray) -> np.ndarray:
    """Of two categories the model says one probability, [*, 1] -> [*, 2]."""
    return np.concatenate([1 - values, values], -1) if values.shape[-1] == 1 else values
