"""Rows of a table and vectors, drawn by their columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .. import figures
from ..figures import DPI
from ..optional import needs
from ..vae import VAE
from . import column_panels as panels
from .base import Drawn, Figures, Latents, moves, ways
from .columns import (
    Shown,
    columns_of,
    correlations,
    draws,
    most_tied,
    movement,
    numpy,
    share_of_range,
)

with needs("train", __name__):
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

DRAWS = 2000  # of the model, in a histogram
CORRELATED = 24  # columns, or categories of one, that are compared with each other
VALUES = 3  # categories of a column that are among them
UNITS = 4  # latent variables in a figure
MOVED = 6  # columns that are shown to move
STEPS = 11  # of a way
PAIRS = 3
LINES = 24  # columns of a single row
MARKS: list[dict[str, Any]] = [  # of its versions
    {"marker": "o", "color": panels.DATA, "lw": 0, "ms": 8},
    {"marker": "|", "color": "black", "lw": 0, "ms": 10},
    {"marker": "o", "color": panels.MODEL, "lw": 0, "ms": 5},
]


class Rows(Figures):
    """Data without an order, x [D], whose columns have names."""

    captions: ClassVar[Mapping[str, Drawn]] = {
        "samples": Drawn(
            "Samples",
            "How the values of each column are distributed in the test data (blue), and among "
            "draws of the model (orange). Of many columns those that have the most to do with the "
            "others.",
        ),
        "correlations": Drawn(
            "Correlations",
            "Rank correlations between the columns, of the test data and of draws of the model: "
            "the two should look alike. Of categories the most frequent ones are compared.",
        ),
        "reconstructions": Drawn(
            "Reconstructions",
            "The test data's values (across) against what the model gives for them from the most "
            "probable z (up); of categories, the share that became each. r is the correlation, on "
            "the scale of the axis.",
        ),
        "interpolation": Drawn(
            "Interpolations",
            "What is expected of the columns that change most on the way from one row of the test "
            "data (dot on the left) to another (right), through the latent.",
        ),
        "traversals": Drawn(
            "Latent traversals",
            "What is expected of the columns that change most as one latent variable moves, the "
            "others as they are for the first row of the test data; the variables in use, the one "
            "with the largest KL first.",
        ),
    }
    most: ClassVar[int | None] = 1000

    def draw(self, vae: VAE, x: Tensor, y: Tensor, folder: Path, count: int = 8) -> list[Path]:
        if not len(x):
            return []
        of_x, columns, data = vae.of_data(x, y), columns_of(vae), numpy(x)
        shown = most_tied(columns, data)
        drawn = np.concatenate([numpy(draws(of_x, len(x))) for _ in range(max(DRAWS // len(x), 1))])
        made = {
            "samples": _distributions(shown, data, drawn),
            "correlations": _correlations(columns, data, drawn),
            "reconstructions": _agreements(shown, data, numpy(of_x.reconstruct(x))),
            "interpolation": _interpolations(vae, columns, x, y),
        }
        written = {folder / f"{name}.png": figure for name, figure in made.items() if figure}
        for path, figure in written.items():
            figures.write(figure, path)
        return list(written)

    def traversals(self, vae: VAE, x: Tensor, latents: Latents, path: Path) -> None:
        moved = [_by_column(vae, expected) for expected in moves(vae, latents, UNITS)]
        names, across = vae.latent.value_names(len(moved[0][0]))
        joined = vae.latent.kind == "numbers"
        figure, axes = _ways(columns_of(vae), moved, numpy(x), latents.names, joined)
        every = -(-len(names) // 7)
        for axis in axes.flat:
            axis.set_xticks(range(0, len(names), every), names[::every])
        figure.supxlabel(across, fontsize="small")
        figure.suptitle(
            f"variable, its {latents.use.measure}", fontsize="medium", x=0.01, ha="left"
        )
        figures.write(figure, path)

    def png(self, vae: VAE, data: Mapping[str, Tensor], others: Tensor) -> bytes:
        versions = {name: numpy(x) for name, x in data.items()}
        return figures.content(_on_lines(columns_of(vae), versions, numpy(others)))


def _distributions(columns: Sequence[Shown], data: np.ndarray, drawn: np.ndarray) -> Figure:
    figure, axes = panels.grid(len(columns))
    for axis, column in zip(axes, columns, strict=True):
        panels.distribution(axis, column, data[:, column.place], drawn[:, column.place])
    legend = [
        Patch(color=panels.DATA, label="data"),
        Line2D([], [], color=panels.MODEL, label="model"),
    ]
    figure.legend(
        handles=legend, loc="outside upper right", ncols=2, frameon=False, fontsize="small"
    )
    return figure


def _agreements(columns: Sequence[Shown], data: np.ndarray, found: np.ndarray) -> Figure:
    figure, axes = panels.grid(len(columns))
    for axis, column in zip(axes, columns, strict=True):
        panels.agreement(axis, column, data[:, column.place], found[:, column.place])
    figure.supxlabel("data", fontsize="small")
    figure.supylabel("reconstruction", fontsize="small")
    return figure


def _correlations(columns: Sequence[Shown], data: np.ndarray, drawn: np.ndarray) -> Figure | None:
    """Two matrices beside each other; None where there is nothing to correlate."""
    names, of_data, of_model = [], [], []
    for column in most_tied(columns, data, CORRELATED):
        for name, category in _parts(column, data[:, column.place]):
            names.append(name)
            of_data.append(_part(data[:, column.place], category))
            of_model.append(_part(drawn[:, column.place], category))
    names = names[:CORRELATED]
    if len(names) < 2:
        return None
    side = max(0.22 * len(names), 1.8)
    figure = Figure(figsize=(2 * side + 2.6, side + 1.6), layout="constrained", dpi=DPI)
    axes = figure.subplots(1, 2)
    for axis, values, title in zip(axes, (of_data, of_model), ("data", "model"), strict=True):
        found = correlations(np.stack(values[:CORRELATED], 1))
        image = axis.imshow(found, cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_title(title, fontsize="medium")
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
        axis.set_yticks(range(len(names)), names, fontsize="x-small")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axes[1].set_yticks([])
    figure.colorbar(image, ax=list(axes), shrink=0.8)
    return figure


def _parts(column: Shown, values: np.ndarray) -> list[tuple[str, int | None]]:
    """What of a column is compared with other columns: its numbers, one of two categories, or the
    most frequent of more."""
    if not column.names:
        return [(column.name, None)]
    if len(column.names) == 2:
        return [(f"{column.name}: {column.names[1]}", 1)]
    often = np.bincount(values[~np.isnan(values)].round().astype(int), minlength=len(column.names))
    frequent = sorted(np.argsort(-often, kind="stable")[:VALUES].tolist())
    return [(f"{column.name}: {column.names[category]}", category) for category in frequent]


def _part(values: np.ndarray, category: int | None) -> np.ndarray:
    return values if category is None else np.where(np.isnan(values), np.nan, values == category)


def _by_column(vae: VAE, expected: Tensor) -> list[np.ndarray]:
    return [numpy(values) for values in vae.likelihood.by_column(expected)]


def _interpolations(vae: VAE, columns: Sequence[Shown], x: Tensor, y: Tensor) -> Figure | None:
    """None of a single row."""
    count = min(PAIRS, len(x) - 1)
    if not count:
        return None
    some = slice(count + 1)
    values = _by_column(vae, ways(vae, x[some], y[some], STEPS))  # [steps, B, n] each
    moved = [[v[:, pair] for v in values] for pair in range(count)]
    titles = [f"row {pair} to {pair + 1}" for pair in range(count)]
    ends = numpy(x[some])
    figure, axes = _ways(columns, moved, numpy(x), titles, ends=ends)
    for axis in axes.flat:
        axis.set_xticks([])
    return figure


def _ways(
    columns: Sequence[Shown],
    moved: Sequence[Sequence[np.ndarray]],
    data: np.ndarray,
    titles: Sequence[str],
    joined: bool = True,
    ends: np.ndarray | None = None,
) -> tuple[Figure, np.ndarray]:
    """A row of panels for each of `moved`, and a column for each of the columns that move most.

    Args:
        moved: what is expected of each column, [V, n].
        titles: of the rows.
        joined: see :func:`.columns.way`.
        ends: the true values where a row begins, and the one after it, [R + 1, D].
    """
    far = movement(columns, [np.stack(v) for v in zip(*moved, strict=True)], data)
    chosen = sorted(np.argsort(-far, kind="stable")[:MOVED].tolist())
    figure, axes = panels.sheet(len(moved), len(chosen), width=2.0, height=1.35)
    for across, place in zip(axes.T, chosen, strict=True):
        column = columns[place]
        across[0].set_title(column.name, fontsize="small")
        for row, axis in enumerate(across):
            panels.way(axis, column, moved[row][place], joined)
            if ends is not None and not column.names:
                truth = ends[row : row + 2, column.place]
                axis.plot([0, len(moved[row][place]) - 1], truth, "o", color=panels.MODEL, ms=4)
        if not column.names:
            panels.same_axis(across, data[:, column.place])
    for axis, title in zip(axes[:, 0], titles, strict=False):
        axis.set_ylabel(title, fontsize="small")
    return figure, axes


def _on_lines(
    columns: Sequence[Shown], versions: Mapping[str, np.ndarray], data: np.ndarray
) -> Figure:
    """A line for each column, from its least to its largest value in the data [N, D], with a mark
    for each version of a row [D]; beside it the last version's value."""
    shown = most_tied(columns, data, LINES)
    size = (5.2, 0.27 * len(shown) + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    axis = figure.subplots()
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.hlines(range(len(shown)), 0, 1, color="#cccccc", lw=1, zorder=0)
    for number, (name, row) in enumerate(versions.items()):
        at = [share_of_range(row[c.place], data[:, c.place]) for c in shown]
        axis.plot(at, range(len(shown)), label=name, **MARKS[number])
    last = [row[[c.place for c in shown]] for row in versions.values()][-1]
    axis.set_yticks(range(len(shown)), [c.name for c in shown], fontsize="small")
    beside = axis.secondary_yaxis("right")
    values = [column.value(value) for column, value in zip(shown, last, strict=True)]
    beside.set_yticks(range(len(shown)), values, fontsize="small")
    for each in (axis, beside):
        each.spines[:].set_visible(False)
        each.tick_params(length=0)
    axis.set_xticks([])
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure
