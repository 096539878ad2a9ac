"""Figures of a latent: what its variables do, how they are used, where the data lies in it.

Sizes are in inches, so that images keep their pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, from_numpy
from torch.special import entr

from .. import figures, pictures
from ..figures import COLOURS, DPI, plain
from ..optional import needs

with needs("train", __name__):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

MARKERS = ["o", "^", "s", "D"]
TEXT = 0.55  # below axes: their numbers and their name
NUMBERS = 0.8  # left of axes: their numbers, with a sign and a fraction, and their name
TITLE = 0.35  # above them
BAR = 0.85  # of colours, with its numbers
MAP_POINTS = 500  # t-SNE of more takes many seconds
ASIDE = 8.0  # inches that the images which codes add are wide at most


def cells(
    grid: Tensor, path: Path, rows: Sequence[str], columns: Sequence[str], across: str, title: str
) -> None:
    """A grid of images, [3, height, width] in [0, 1], with a name at every row and column."""
    height, width = (pixels / DPI for pixels in grid.shape[-2:])
    left = 0.15 + 0.08 * max(len(name.strip("$")) for name in rows)
    figure = sheet(left + width + 0.15, TEXT + height + TITLE)
    axis = axes_at(figure, left, TEXT, width, height)
    axis.imshow(pixels(grid), interpolation="nearest")
    _name(axis, grid.shape[-2:], rows, columns)
    axis.set_xlabel(across)
    axis.set_title(title, fontsize="medium", loc="left")
    figures.write(figure, path)


def traversals(
    images: Tensor,
    variables: Sequence[str],
    measure: str,
    values: Sequence[str],
    across: str,
    path: Path,
) -> None:
    """Images [R, V, C, H, W] of each variable at each of its values, a row for each variable.

    Args:
        variables: their names, each with its measure.
        measure: what that is.
        values: their names.
        across: what these are.
    """
    rows, title = variables, f"variable, its {measure}"
    columns = values
    if images.shape[1] < 4:  # a narrow column of pictures, unless lying down
        images, rows, columns = images.transpose(0, 1), columns, [n.split()[0] for n in rows]
        across, title = "variable", ""
    image = pictures.grid(images.flatten(0, 1), columns=images.shape[1]).cpu()
    cells(image, path, rows, columns, across, title)


def codes(
    usage: Tensor, names: Sequence[str], images: Tensor, pictured: Sequence[int], path: Path
) -> None:
    """A heat map of how often every code is used, beside the image that each code adds.

    Args:
        usage: mean probability of every value of every variable, [L, K].
        names: of the variables.
        images: what a value adds to the mean image, as one grid [height, width].
        pictured: rows and columns of that grid; the first of the variables and of their values.
        path: the PNG to write.
    """
    count, values = usage.shape
    height = min(max(0.25 * count, 0.45 * pictured[0], 1.5), 8.0)
    width = min(max(0.25 * values, 0.9), 6.0)
    aside = min(height * images.shape[1] / images.shape[0], ASIDE)
    beside = aside * images.shape[0] / images.shape[1]  # the height of what the codes add
    figure = sheet(0.6 + width + BAR + 0.7 + aside + BAR, TEXT + height + TITLE)
    axis = axes_at(figure, 0.6, TEXT, width, height)
    heat = axis.imshow(usage.numpy(), cmap="viridis", vmin=0, aspect="auto")
    every = math.ceil(count / (height / 0.16))  # of the names, so that none covers another
    axis.set_yticks(range(0, count, every), list(names)[::every], fontsize="small")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("k")
    axis.set_title("mean of q(z = k | x)", fontsize="medium", loc="left")
    bar(figure, heat, 0.6 + width, TEXT, height)
    left = 0.6 + width + BAR + 0.7
    bottom = TEXT + height - beside
    axis = axes_at(figure, left, bottom, aside, beside)
    limit = max(float(images.abs().nan_to_num().max()), 1e-6)
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="white")
    added = axis.imshow(images.numpy(), cmap=colours, vmin=-limit, vmax=limit)
    rows, columns = pictured
    _name(axis, images.shape, list(names)[:rows], [str(k) for k in range(columns)])
    axis.set_xlabel("k")
    axis.set_title("what the code adds", fontsize="medium", loc="left")
    bar(figure, added, left + aside, bottom, beside)
    figures.write(figure, path)


def densities(z: Tensor, across: Tensor, prior: Tensor, names: Sequence[str], path: Path) -> None:
    """The aggregate posterior of continuous latents, as histograms, against the prior's density.

    Args:
        z: draws from q(z|x) for the data, [N, R].
        across: points of the axis, [P, R].
        prior: density of the prior there, [P, R].
        names: of the variables.
        path: the PNG to write.
    """
    figure, axes = _panels(len(names), 1.9)
    for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
        heights, edges = np.histogram(z[:, i].numpy(), bins=40, density=True)
        axis.stairs(heights, edges, fill=True, color=COLOURS[5], label="q(z)")
        axis.plot(across[:, i].numpy(), prior[:, i].numpy(), color=COLOURS[1], label="p(z)")
        axis.set_title(name, fontsize="small")
    _legend(figure, axes[0])
    figures.write(figure, path)


def codebook(usage: Tensor, prior: Tensor, names: Sequence[str], path: Path) -> None:
    r"""How often each code is used, from the most frequent one to the rarest.

    The title has the perplexity :math:`\exp H` of these frequencies: K where all codes are used
    equally.

    Args:
        usage: mean of q(z|x) over the data, [R, K].
        prior: its probabilities, [R, K].
        names: of the variables.
        path: the PNG to write.
    """
    wide = len(names) == 1
    figure, axes = _panels(len(names), 6.0 if wide else 2.9, 1.6 if wide else 0.95)
    for axis, name, heights, expected in zip(axes, names, usage, prior, strict=True):
        order, edges = heights.argsort(descending=True), np.arange(len(heights) + 1) - 0.5
        axis.stairs(heights[order].numpy(), edges, fill=True, color=COLOURS[5], label="q(z)")
        axis.stairs(expected[order].numpy(), edges, baseline=None, color=COLOURS[1], label="p(z)")
        perplexity = entr(heights.double()).sum().exp().item()
        axis.set_title(f"{name}, perplexity {perplexity:.0f} of {len(heights)}", fontsize="small")
        axis.set_xlim(edges[0], edges[-1])
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if wide:
        axes[0].set_xlabel("codes, the most frequent first")
    _legend(figure, axes[0])
    figures.write(figure, path)


def frequencies(usage: Tensor, prior: Tensor, names: Sequence[str], path: Path) -> None:
    """The aggregate posterior of discrete latents, as bars, against the prior's probabilities.

    Args:
        usage: mean of q(z|x) over the data, [R, K]; of bits all are one panel.
        prior: its probabilities, [R, K].
        names: of the variables.
        path: the PNG to write.
    """
    bits = usage.shape[1] == 2
    figure, axes = _panels(1, 6.0) if bits else _panels(len(names), 1.9)
    drawn = [(usage[:, 1], prior[:, 1])] if bits else list(zip(usage, prior, strict=True))
    titles = ["probability of a 1"] if bits else names
    for axis, title, (heights, expected) in zip(axes, titles, drawn, strict=True):
        edges = np.arange(len(heights) + 1) - 0.5
        axis.bar(np.arange(len(heights)), heights.numpy(), color=COLOURS[5], label="q(z)")
        axis.stairs(expected.numpy(), edges, baseline=None, color=COLOURS[1], lw=1.5, label="p(z)")
        axis.set_title(title, fontsize="small")
        axis.set_xlim(edges[0], edges[-1])
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_ylim(0, 1 if bits else None)
    if bits:
        axes[0].set_xlabel("bits, the one with the largest KL first")
        axes[0].set_yticks([0, 0.5, 1])
    _legend(figure, axes[0])
    figures.write(figure, path)


def scatter(
    points: Tensor,
    labels: Tensor,
    title: str,
    path: Path,
    decoded: Tensor | None = None,
    extent: tuple[float, float, float, float] | None = None,
    axes: bool = False,
    names: Sequence[Any] | None = None,
) -> None:
    """A map of the data in the latent, coloured by label; beside it what is decoded there.

    Args:
        points: shape [N, 2].
        labels: [N], -1 where there is none; of attributes, [N, A], the first is shown.
        title: what the axes are.
        path: the PNG to write.
        decoded: images decoded on a grid of the same axes, one [3, height, width].
        extent: left, right, bottom and top of that grid.
        axes: without it, are the axes those of the latent, which have names and numbers.
        names: of the labels; None: their numbers.
    """
    side = 5.0
    width = NUMBERS + side + (0 if decoded is None else TEXT + side) + 0.2
    figure = sheet(width, TEXT + side + TITLE)
    axis = axes_at(figure, NUMBERS, TEXT, side, side)
    _classes(axis, points.numpy(), labels.numpy(), names)
    axis.set_title(title, fontsize="medium", loc="left")
    plain(axis)
    if decoded is None or extent is None:
        axis.set(xlabel="$z_0$", ylabel="$z_1$") if axes else axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(axes)
    else:
        axis.set(xlabel="$z_0$", ylabel="$z_1$", xlim=extent[:2], ylim=extent[2:])
        beside = axes_at(figure, NUMBERS + side + TEXT, TEXT, side, side)
        beside.imshow(pixels(decoded), extent=extent, interpolation="nearest")
        beside.set_title("decoded", fontsize="medium", loc="left")
        beside.set(xlabel="$z_0$", aspect="auto")
    figures.write(figure, path)


def tsne(
    features: Tensor, labels: Tensor, title: str, path: Path, names: Sequence[Any] | None = None
) -> None:
    """A map of features [N, F] by t-SNE, if they are enough and differ."""
    if len(features) <= 10 or features.shape[1] < 2 or features.std(0).max() <= 1e-6:
        return
    with needs("train", __name__):
        from sklearn.manifold import TSNE  # takes a second

    points = features[:MAP_POINTS].numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    mapped = TSNE(init="pca", random_state=0, perplexity=perplexity, max_iter=500)
    placed = from_numpy(mapped.fit_transform(points))
    scatter(placed, labels[:MAP_POINTS], title, path, names=names)


def _classes(
    axis: Axes, points: np.ndarray, labels: np.ndarray, names: Sequence[Any] | None
) -> None:
    """A colour and a marker for each label, and its name amid its points."""
    if labels.ndim == 2:
        _in_order(axis, points, labels[:, 0], "first attribute")
        return
    known = np.unique(labels[labels >= 0])
    if len(known) > len(COLOURS) * len(MARKERS):  # an order may still show
        _in_order(axis, points, labels, "label")
        return
    rest = points[labels < 0]
    axis.scatter(rest[:, 0], rest[:, 1], color=COLOURS[0], s=8, linewidths=0)
    for i, label in enumerate(known):
        own = points[labels == label]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS)]
        axis.scatter(
            own[:, 0], own[:, 1], color=colour, marker=marker, s=14, alpha=0.7, linewidths=0
        )
    for label in known:
        middle = np.median(points[labels == label], 0)
        halo = [withStroke(linewidth=3, foreground="white")]
        name = str(names[label] if names else label)
        axis.annotate(name, middle, ha="center", va="center", weight="bold", path_effects=halo)


def _in_order(axis: Axes, points: np.ndarray, values: np.ndarray, name: str) -> None:
    """A colour for each value, on a scale."""
    drawn = axis.scatter(points[:, 0], points[:, 1], c=values, cmap="viridis", s=8, linewidths=0)
    axis.figure.colorbar(drawn, ax=axis, shrink=0.6, label=name)


def sheet(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI)


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def bar(figure: Figure, image: AxesImage, left: float, bottom: float, height: float) -> None:
    """Draws the scale of an image's colours to the right of it."""
    axis = axes_at(figure, left + 0.1, bottom, 0.12, height)
    figure.colorbar(image, cax=axis)
    axis.tick_params(labelsize="small")


def _panels(count: int, width: float, height: float = 0.95) -> tuple[Figure, list[Axes]]:
    """Small panels, four in a row, with room for a legend above."""
    columns = min(4 if width < 2.5 else 3, count)
    rows = math.ceil(count / columns)
    figure = sheet((width + 0.3) * columns + 0.3, (height + TEXT) * rows + TITLE + 0.1)
    axes = []
    for i in range(count):
        bottom = (rows - 1 - i // columns) * (height + TEXT) + (TEXT if width > 3 else 0.3)
        axis = axes_at(figure, 0.3 + i % columns * (width + 0.3), bottom, width, height)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize="small")
        axis.set_yticks([])
        axes.append(axis)
    return figure, axes


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False, borderaxespad=0)


def pixels(image: Tensor) -> np.ndarray:
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()


def _name(axis: Axes, size: Sequence[int], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names at the middles of the rows and columns of a grid of images, and no frame."""
    for axes, names, pixels in ((axis.yaxis, rows, size[0]), (axis.xaxis, columns, size[1])):
        axes.set_ticks((np.arange(len(names)) + 0.5) * pixels / len(names) - 0.5, names)
    axis.tick_params(length=0, labelsize="small")
    axis.spines[:].set_visible(False)
