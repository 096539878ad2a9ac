"""Figures of a grid's places: maps of them, below images or over them.

Places are numbered like pixels, and each lies where it is in the image: the last ones of an image
whose sides are no multiples of a place's stand out of it and are cut off.
"""

import colorsys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import figures
from ..optional import needs
from .latent_figures import BAR, axes_at, bar, pixels, sheet

with needs("train", __name__):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

LONGER = 1.5  # inches of the longer side of an image
GAP = 0.08  # between images
NAMES = 0.5  # of the names of rows
ABOVE = 0.45  # of titles
GOLDEN = 0.618034  # of the circle of hues: the first so many are as different as they can be


def heat(images: Tensor, maps: Tensor, titles: Sequence[str], side: int, path: Path) -> None:
    """Maps of one quantity from 0, over grey images and below the images themselves.

    Args:
        images: [N, 3, H, W] in [0, 1].
        maps: [M, h, w], of which the first N are the images'.
        titles: of the maps.
        side: pixels of a place.
        path: the PNG to write.
    """
    figure, axes = _table(images, 2, len(maps), above=ABOVE, right=BAR)
    for column, (values, title) in enumerate(zip(maps, titles, strict=True)):
        above, below = axes[0][column], axes[1][column]
        if column < len(images):
            _image(above, images[column])
            _image(below, images[column].mean(0, keepdim=True).expand(3, -1, -1))
        shown = _map(
            below,
            values.numpy(),
            images,
            side,
            cmap="inferno",
            vmin=0,
            vmax=maps.max().item(),
            alpha=0.75 if column < len(images) else 1,
        )
        (above if column < len(images) else below).set_title(title, fontsize="small")
    _scale(figure, axes, shown)
    figures.write(figure, path)


def values(
    images: Tensor,
    numbers: Tensor,
    limits: tuple[float, float],
    names: Sequence[str],
    side: int,
    path: Path,
) -> None:
    """Images, and below each a map of every variable.

    Args:
        images: [N, 3, H, W] in [0, 1].
        numbers: [N, R, h, w].
        limits: the least and the largest of them.
        names: of the variables, R.
        side: pixels of a place.
        path: the PNG to write.
    """
    figure, axes = _table(images, 1 + len(names), len(images), left=NAMES, right=BAR)
    for axis, one in _below(axes, images, numbers, names):
        low, high = limits
        shown = _map(axis, one, images, side, cmap="viridis", vmin=low, vmax=high)
    _scale(figure, axes, shown)
    figures.write(figure, path)


def codes(
    images: Tensor, numbers: Tensor, rank: Tensor, names: Sequence[str], side: int, path: Path
) -> None:
    """Images, and below each a map of every variable's codes, each in a colour of its own.

    Args:
        images: [N, 3, H, W] in [0, 1].
        numbers: [N, R, h, w], whole.
        rank: of every code, [R, K]: the first ones get the colours that differ most.
        names: of the variables, R.
        side: pixels of a place.
        path: the PNG to write.
    """
    figure, axes = _table(images, 1 + len(names), len(images), left=NAMES)
    palette = np.array([_colour(place) for place in range(rank.shape[1])])
    ranked = rank[np.arange(len(names))[:, None, None], numbers]  # [N, R, h, w]
    for axis, one in _below(axes, images, ranked, names):
        _map(axis, palette[one], images, side)
    figures.write(figure, path)


def _colour(rank: int) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(
        rank * GOLDEN % 1, (0.75, 0.45, 1.0)[rank % 3], (0.9, 1.0, 0.55)[rank % 3]
    )


def _below(
    axes: Sequence[Sequence[Axes]], images: Tensor, numbers: Tensor, names: Sequence[str]
) -> Iterator[tuple[Axes, np.ndarray]]:
    """Draws the images in the first row; the axes and maps of the other rows."""
    for axis, image in zip(axes[0], images, strict=True):
        _image(axis, image)
    for row, name in enumerate(names):
        axes[row + 1][0].set_ylabel(name, rotation=0, ha="right", va="center")
        for column, axis in enumerate(axes[row + 1]):
            yield axis, numbers[column, row].numpy()


def _table(
    images: Tensor,
    rows: int,
    columns: int,
    left: float = GAP,
    right: float = GAP,
    above: float = GAP,
) -> tuple[Figure, list[list[Axes]]]:
    """Axes of the images' shape in rows and columns, with neither frame nor ticks."""
    height, width = (LONGER * pixels / max(images.shape[-2:]) for pixels in images.shape[-2:])
    figure = sheet(left + columns * (width + GAP) + right, above + rows * (height + GAP) + GAP)
    axes = [
        [
            axes_at(
                figure,
                left + column * (width + GAP),
                GAP + (rows - 1 - row) * (height + GAP),
                width,
                height,
            )
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    for axis in (axis for row in axes for axis in row):
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure, axes


def _image(axis: Axes, image: Tensor) -> None:
    height, width = image.shape[-2:]
    axis.imshow(pixels(image), extent=(0, width, height, 0), interpolation="nearest")


def _map(axis: Axes, values: np.ndarray, images: Tensor, side: int, **look: Any) -> AxesImage:
    height, width = images.shape[-2:]
    extent = (0, values.shape[1] * side, values.shape[0] * side, 0)
    shown = axis.imshow(values, extent=extent, interpolation="nearest", **look)
    axis.set(xlim=(0, width), ylim=(height, 0))
    return shown


def _scale(figure: Figure, axes: Sequence[Sequence[Axes]], shown: AxesImage) -> None:
    """The scale of the maps' colours, to the right of the last one."""
    across, up = figure.get_size_inches()
    place = axes[-1][-1].get_position()
    bar(figure, shown, place.x1 * across, place.y0 * up, place.height * up)
