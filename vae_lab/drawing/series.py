"""Series, drawn over time: a line for each channel of numbers, coloured cells for categories."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .. import figures
from ..figures import COLOURS, DPI, plain
from ..optional import needs
from ..vae import VAE
from . import column_panels as panels
from .base import Drawn, Figures, Latents, moves, ways
from .column_panels import SHARES
from .columns import Shown, columns_of, draws, numpy

with needs("train", __name__):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

CHANNELS = 6  # in a figure
SHOWN = 4  # series beside each other
LINES = 8  # in one panel
STEPS = 7  # of a way
VERSIONS = [panels.DATA, "#999999", panels.MODEL]  # of one series
LETTERED = 60  # cells across with room for a letter each


class Series(Figures):
    """Data in an order, x [T, D], whose channels have names."""

    captions: ClassVar[Mapping[str, Drawn]] = {
        "samples": Drawn(
            "Samples",
            "Some test data, and as many draws of the model, over time; a row for each channel. "
            "Steps that are missing are gaps.",
        ),
        "reconstructions": Drawn(
            "Reconstructions",
            "Test data (blue) and what the model gives for them from the most probable z (orange), "
            "over time; of categories the data above.",
        ),
        "interpolation": Drawn(
            "Interpolations",
            "What is expected of the channels on the way from one of the test data (dark) to "
            "another (light), through the latent.",
        ),
        "traversals": Drawn(
            "Latent traversals",
            "What is expected of the channels for each value of a latent variable, from the lowest "
            "(dark) to the highest (light), the others as they are for the first of the test data; "
            "the variables in use, the one with the largest KL first.",
        ),
    }
    most: ClassVar[int | None] = LINES

    def draw(self, vae: VAE, x: Tensor, y: Tensor, folder: Path, count: int = 8) -> list[Path]:
        if not len(x):
            return []
        x, y = x[:LINES], y[:LINES]
        of_x, channels = vae.of_data(x, y), _channels(vae)
        made = {
            "samples": _beside(channels, {"data": numpy(x), "model": numpy(draws(of_x, len(x)))}),
            "reconstructions": _over(channels, numpy(x), numpy(of_x.reconstruct(x))),
        }
        if len(x) > 1:
            paths = numpy(_shown(vae, ways(vae, x[: SHOWN + 1], y[: SHOWN + 1], STEPS)))
            count = min(SHOWN, len(x) - 1)
            fans = {f"{pair} to {pair + 1}": paths[:, pair] for pair in range(count)}
            made["interpolation"] = _fans(channels, fans)
        written = {folder / f"{name}.png": figure for name, figure in made.items()}
        for path, figure in written.items():
            figures.write(figure, path)
        return list(written)

    def traversals(self, vae: VAE, x: Tensor, latents: Latents, path: Path) -> None:
        moved = [numpy(_shown(vae, expected)) for expected in moves(vae, latents, SHOWN)]
        fans = dict(zip(latents.names, moved, strict=False))
        figures.write(_fans(_channels(vae), fans), path)

    def png(self, vae: VAE, data: Mapping[str, Tensor], others: Tensor) -> bytes:
        versions = {name: numpy(x) for name, x in data.items()}
        return figures.content(_versions(_channels(vae), versions, numpy(others)))


def _channels(vae: VAE) -> list[Shown]:
    return columns_of(vae)[:CHANNELS]


def _shown(vae: VAE, expected: Tensor) -> Tensor:
    return vae.likelihood.show(expected)


def _sheet(
    channels: Sequence[Shown], titles: Sequence[str], rows: int
) -> tuple[Figure, np.ndarray]:
    """A row of panels for each channel, a column for each title.

    Args:
        rows: of cells, in a panel of categories.
    """
    heights = [0.3 + 0.16 * rows if channel.names else 1.4 for channel in channels]
    wide = 2.6 if len(titles) > 2 else 4.2
    figure = Figure(
        figsize=(max(wide * len(titles), 4), sum(heights) + 0.8), layout="constrained", dpi=DPI
    )
    axes = figure.subplots(
        len(channels),
        len(titles),
        squeeze=False,
        sharex=True,
        sharey="row",
        gridspec_kw={"height_ratios": heights},
    )
    for row, channel in zip(axes, channels, strict=True):
        row[0].set_ylabel(channel.name, fontsize="small")
        for axis in row:
            plain(axis)
            axis.tick_params(labelsize="x-small")
        if channel.names:
            _legend(row[-1], channel)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize="small")
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize="x-small")
    return figure, axes


def _legend(axis: Axes, channel: Shown) -> None:
    """The colours of the categories, beside the last panel."""
    if len(channel.names) <= len(SHARES):
        handles = [Patch(color=SHARES[k], label=name[:12]) for k, name in enumerate(channel.names)]
        axis.legend(
            handles=handles,
            fontsize="xx-small",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            handlelength=1,
            borderaxespad=0.3,
            labelspacing=0.2,
        )


def _cells(axis: Axes, channel: Shown, values: np.ndarray, names: Sequence[str] = ()) -> None:
    """Categories [R, T] as coloured cells, a row each; letters where they have one."""
    known = np.ma.masked_invalid(values)
    few = len(channel.names) <= len(SHARES)
    colours = (
        SHARES[: len(channel.names)]
        if few
        else matplotlib.colormaps["turbo"](np.linspace(0, 1, len(channel.names)))
    )
    cmap = matplotlib.colors.ListedColormap(colours, bad="white")
    axis.imshow(
        known,
        cmap=cmap,
        vmin=-0.5,
        vmax=len(channel.names) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    axis.grid(False)
    axis.set_yticks(range(len(names)), list(names))
    if values.shape[1] <= LETTERED and all(len(name) == 1 for name in channel.names):
        for (row, step), value in np.ndenumerate(values):
            if value == value:
                axis.text(step, row, channel.value(value), ha="center", va="center", fontsize=6)


def _line(axis: Axes, values: np.ndarray, **style: Any) -> None:
    """Numbers [T] over time; a step whose neighbours are missing is a dot."""
    axis.plot(values, lw=1.1, **style)
    gaps = np.isnan(np.pad(values, 1, constant_values=np.nan))
    alone = gaps[:-2] & gaps[2:] & ~gaps[1:-1]
    axis.plot(np.flatnonzero(alone), values[alone], ".", markersize=3, **style)


def _over(channels: Sequence[Shown], data: np.ndarray, found: np.ndarray) -> Figure:
    """Data [N, T, D] and what was found for them, in the same panels."""
    count = min(SHOWN, len(data))
    figure, axes = _sheet(channels, [f"row {number}" for number in range(count)], rows=2)
    for row, channel in zip(axes, channels, strict=True):
        for axis, true, other in zip(
            row, data[..., channel.place], found[..., channel.place], strict=False
        ):
            if channel.names:
                _cells(axis, channel, np.stack([true, other.round()]), ["data", "model"])
            else:
                _line(axis, other, color=panels.MODEL)
                _line(axis, true, color=COLOURS[0])
    _key(figure, {"data": COLOURS[0], "reconstruction": panels.MODEL})
    return figure


def _beside(channels: Sequence[Shown], parts: Mapping[str, np.ndarray]) -> Figure:
    """Some series [N, T, D] of each part in a panel, on common axes."""
    return _panels(channels, parts, LINES, lambda count: COLOURS * (count // len(COLOURS) + 1))


def _fans(channels: Sequence[Shown], parts: Mapping[str, np.ndarray]) -> Figure:
    """Series [V, T, D] that follow each other, as lines from dark to light in a panel."""
    shades = matplotlib.colormaps["viridis"]
    return _panels(channels, parts, STEPS, lambda count: shades(np.linspace(0, 0.9, count)))


def _panels(
    channels: Sequence[Shown],
    parts: Mapping[str, np.ndarray],
    rows: int,
    colours: Callable[[int], Iterable[Any]],
) -> Figure:
    """Series [N, T, D] of each part in a panel of each channel.

    Args:
        rows: of the cells of a channel of categories.
        colours: of so many lines, or more.
    """
    figure, axes = _sheet(channels, list(parts), rows=rows)
    for row, channel in zip(axes, channels, strict=True):
        for axis, values in zip(row, parts.values(), strict=True):
            values = values[..., channel.place]
            if channel.names:
                _cells(axis, channel, values.round())
                continue
            for line, colour in zip(values, colours(len(values)), strict=False):
                _line(axis, line, color=colour)
    return figure


def _key(figure: Figure, colours: Mapping[str, str]) -> None:
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    figure.legend(
        handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize="small"
    )


def _versions(
    channels: Sequence[Shown], versions: Mapping[str, np.ndarray], data: np.ndarray
) -> Figure:
    """Versions of one series [T, D] in a panel for each channel."""
    colours = dict(zip(versions, VERSIONS, strict=False))
    figure, axes = _sheet(channels, [""], rows=len(versions))
    for axis, channel in zip(axes[:, 0], channels, strict=True):
        values = {name: x[:, channel.place] for name, x in versions.items()}
        if channel.names:
            _cells(axis, channel, np.stack(list(values.values())).round(), list(values))
            continue
        for name, line in values.items():
            _line(axis, line, color=colours[name])
        known = data[..., channel.place]
        if (~np.isnan(known)).any():
            axis.set_ylim(np.nanmin(known), np.nanmax(known))
    _key(figure, colours)
    return figure
