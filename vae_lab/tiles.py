"""Pictures larger than memory, tile by tile."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .inputs import as_tensor, check_count
from .networks.base import grid, place_size

if TYPE_CHECKING:
    from .vae import VAE

STRIP = 129  # places of the strip on which the reach is measured, half of which it can be
MIDDLE = STRIP // 2


class Tiled:
    """A fully convolutional model of one picture that may be larger than memory.

    A tile is computed together with all around it that it depends on: the result is that of the
    whole picture at once, but for rounding. How far that reaches is measured on the model's own
    layers. Pictures and results are numpy arrays, which may be in a file (:class:`numpy.memmap`);
    floats in [0, 1] or bytes, which are divided by 255.

    .. code-block:: python

        Tiled(vae, tile=512).reconstruct(picture, out)

    Args:
        vae: its places have to depend only on what is near them, as those of the network `Grid` do
            with `norm="place"` and without attention. A conditional one is given the picture's y,
            `vae.given(y)`.
        tile: pixels along each side of a tile, rounded up to whole places; the memory that is
            needed grows with its square.
    """

    def __init__(self, vae: "VAE", tile: int = 512) -> None:
        check_count("tile", tile)
        vae = _of_one_picture(vae)
        self.vae = vae.at(*vae.shape)  # a fully convolutional one, or it says so
        self.tile = tile
        self._channels = vae.shape[0]
        self._stride = place_size(vae.network)
        self._variables = vae.latent.num_variables // vae.latent.num_places  # of a place
        self._reach = measured_reach(vae)

    @torch.no_grad()
    def encode(self, picture: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The most probable z of a picture [C, H, W], as one number for each variable: [h, w, L].

        Args:
            out: to be filled, of that shape; None: a new array.
        """
        _, height, width = shape = self._checked(picture)
        places = grid(self.vae.network, shape)
        out = _result(out, (*places, self._variables))
        for rows, columns in self._tiles(places, self._reach.encoder):
            sides = (self._pixels(rows, height), self._pixels(columns, width))
            x = self._tensor(picture[np.ix_(np.arange(self._channels), *sides)])
            vae = self.vae.at(*x.shape)
            latent = vae.latent
            z = latent.mode(vae.encode(vae.images(x.unsqueeze(0))))
            numbers = latent.at_places(latent.numbers(z))[0]
            _put(out[rows.kept, columns.kept], numbers[rows.inner, columns.inner])
        return out

    @torch.no_grad()
    def decode(self, z: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The mean of p(x|z) for numbers [h, w, L] such as :meth:`encode` gives, [C, H, W].

        Args:
            out: to be filled, of floats or of bytes; its size says where the last places are cut
                off. None: a new array of whole places.
        """
        shape = _shape("z", z)
        if len(shape) != 3 or shape[2] != self._variables:
            raise ValueError(f"z must have the shape [h, w, {self._variables}], got {list(shape)}")
        places, stride = shape[:2], self._stride
        out = _result(out, (self._channels, *(side * stride for side in places)), cut=stride)
        for rows, columns in self._tiles(places, self._reach.decoder):
            seen = z[np.ix_(rows.seen, columns.seen)]
            self.vae.latent.check_numbers(seen)
            sides = (len(rows.seen) * stride, len(columns.seen) * stride)
            vae = self.vae.at(self._channels, *sides)
            numbers = as_tensor("z", seen, vae).flatten()
            mean = vae.likelihood.mean(vae.decode(vae.latent.from_numbers(numbers)))
            pixels = (255 * mean).round() if out.dtype == np.uint8 else mean
            kept, inner = (
                [slice(part.start * stride, part.stop * stride) for part in parts]
                for parts in ((rows.kept, columns.kept), (rows.inner, columns.inner))
            )
            _put(out[:, *kept], pixels[:, *inner])
        return out

    def reconstruct(self, picture: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The mean of p(x|z) at the most probable z, [C, H, W]; z is kept in memory meanwhile."""
        shape = self._checked(picture)
        return self.decode(self.encode(picture), _result(out, shape))

    def _checked(self, picture: np.ndarray) -> tuple[int, ...]:
        shape, channels = _shape("picture", picture), self._channels
        if len(shape) == 3 and shape[0] == channels:
            return shape
        last = len(shape) == 3 and shape[2] == channels
        hint = ": type picture.transpose(2, 0, 1)" if last else ""
        raise ValueError(f"picture must have the shape [{channels}, H, W], got {list(shape)}{hint}")

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        return as_tensor("picture", pixels, self.vae) / (255 if pixels.dtype == np.uint8 else 1)

    def _pixels(self, window: "_Window", side: int) -> np.ndarray:
        """Those of the places that are seen; beyond the picture's end it is its last one again."""
        pixels = window.seen[:, None] * self._stride + np.arange(self._stride)
        return pixels.ravel().clip(max=side - 1)

    def _tiles(self, places: tuple[int, ...], reach: int) -> Iterator[tuple["_Window", ...]]:
        size, wraps = -(-self.tile // self._stride), self._reach.wraps
        return product(*(_windows(length, size, reach, wraps) for length in places))


def _of_one_picture(vae: "VAE") -> "VAE":
    """The model, given one y where it is conditional."""
    if vae.condition is not None and vae._y is None and vae._vector is None:
        wanted = vae.condition.wanted
        raise ValueError(f"a picture in tiles needs its y, {wanted}: type Tiled(vae.given(y))")
    vector = vae.vector_of(None)
    if vector is None:
        return vae
    if vector[..., 0].numel() != 1:
        raise ValueError(f"y must be one, that of the picture, got {list(vector.shape[:-1])}")
    return vae.settled(vector.flatten())


def _shape(name: str, array: np.ndarray) -> tuple[int, ...]:
    if not isinstance(array, np.ndarray):
        hint = f": type {name}.numpy()" if isinstance(array, Tensor) else ""
        raise ValueError(f"{name} must be a numpy array, got {type(array).__name__}{hint}")
    return array.shape


class _Window(NamedTuple):
    """A tile along one side, in places."""

    kept: slice  # of the result
    seen: np.ndarray  # the tile and what it depends on
    inner: slice  # the tile among these


def _windows(length: int, size: int, reach: int, wraps: bool) -> Iterator[_Window]:
    for first in range(0, length, size):
        last = min(first + size, length)
        around = np.arange(first - reach, last + reach)
        seen = around % length if wraps else around[(around >= 0) & (around < length)]
        before = reach if wraps else min(reach, first)
        yield _Window(slice(first, last), seen, slice(before, before + last - first))


def _result(out: np.ndarray | None, shape: tuple[int, ...], cut: int = 1) -> np.ndarray:
    """`out`, or a new array; each side may lack less than `cut` of the last axes."""
    if out is None:
        return np.empty(shape, np.float32)
    fits = len(out.shape) == len(shape) and all(
        0 <= there - here < (cut if axis else 1)
        for axis, (there, here) in enumerate(zip(shape, out.shape, strict=True))
    )
    if not fits:
        raise ValueError(f"out must have the shape {list(shape)}, got {list(out.shape)}")
    return out


def _put(out: np.ndarray, values: Tensor) -> None:
    """Writes as much as there is a place for."""
    out[...] = values[tuple(slice(side) for side in out.shape)].float().cpu()


class Reach(NamedTuple):
    """How far from a place what it depends on can be, in places, and whether over the border."""

    encoder: int
    decoder: int
    wraps: bool  # the picture's left border is next to its right one, as with circular padding


def measured_reach(vae: "VAE") -> Reach:
    """The reach of a fully convolutional model: what depends on a NaN is NaN.

    Raises:
        ValueError: there is none, every place depends on all.
    """
    # In double precision no fast way to convolve, such as Winograd's, spreads it any further.
    encoder, decoder = (
        deepcopy(part).to("cpu", torch.double) for part in (vae.encoder, vae.decoder)
    )
    stride = place_size(vae.network)
    channels, width = vae.shape[0], vae.latent.width
    if vae.condition is not None:
        width += vae.condition.width

    def by_encoder(marks: Tensor) -> Tensor:
        pixels = marks.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
        return encoder(pixels.unsqueeze(1).expand(-1, channels, -1, -1)).isnan().any(-1)

    def by_decoder(marks: Tensor) -> Tensor:
        pixels = decoder(marks.unsqueeze(-1).expand(-1, -1, -1, width)).isnan().any(1)
        return pixels.unflatten(2, (-1, stride)).any(3).unflatten(1, (-1, stride)).any(2)

    with torch.no_grad():
        (first, wraps), (second, _) = _spread(by_encoder), _spread(by_decoder)
    if max(first, second) == MIDDLE:
        raise ValueError(
            "tiles need a network whose places depend only on what is near them, such as "
            f"Grid(norm='place', attention=False), got {vae.network}: type vae.at(C, H, W) for the "
            "whole picture at once"
        )
    return Reach(first, second, wraps)


def _spread(reached: Callable[[Tensor], Tensor]) -> tuple[int, bool]:
    """How far from marked places [2, h, w] are those that they reach, and do they wrap around.

    Measured on strips along both sides, marked in the middle and at the beginning.
    """
    marks = torch.zeros(2, STRIP, 2, dtype=torch.double)
    marks[0, MIDDLE] = marks[1, 0] = torch.nan
    down, right = reached(marks).any(2), reached(marks.mT).any(1)  # [2, STRIP]
    middle, first = down | right
    distances = (torch.arange(STRIP) - MIDDLE).abs()
    return int(distances[middle].max()), bool(first[-1])
