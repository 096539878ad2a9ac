"""Pictures of a VAE: functions from a model and images to a grid, and one that writes a PNG.

A grid is one image [3, height, width], floats in [0, 1]. The cells keep their pixels: small images
are enlarged by a whole factor without smoothing. None of the functions tracks gradients or changes
the model's mode; noise comes from torch's default generator.
"""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import variables
from .latents.base import ACTIVE
from .networks.base import place_size
from .optional import needs
from .storage import files
from .vae import VAE

with needs("train", __name__):
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

CELL = 64  # pixels that the shorter side of a cell has at least
GAP = 4  # pixels between cells
GREY = 0.5  # of the gaps: neither the black nor the white that images often have at their border
BAND = 12  # pixels of white between the originals and their reconstructions
LABELS = 10  # that have a row of samples at least
AT_ONCE = 64  # codes
WIDTH = 1640  # pixels that a row of large images is wide at most


def in_a_row(vae: VAE, most: int) -> int:
    """How many images of this model a person can look at beside each other, 2 to `most`."""
    return min(most, max(WIDTH // (vae.shape[-1] + GAP), 2))


@torch.no_grad()
def reconstructions(vae: VAE, x: Tensor) -> Tensor:
    """The images x [B, C, H, W] in a row, a white band, and their reconstructions below.

    Args:
        vae: The model.
        x: Images in [0, 1], shape [B, C, H, W].
    """
    originals, decoded = (
        grid(vae.likelihood.intensity(part), columns=len(x)) for part in (x, vae.reconstruct(x))
    )
    band = originals.new_ones(3, BAND, originals.shape[-1])
    return torch.cat([originals, band, decoded], dim=1)


@torch.no_grad()
def samples(vae: VAE, rows: int = 8, columns: int = 8) -> Tensor:
    """Mean images of :func:`draws` from the prior, in one image."""
    return grid(vae.likelihood.intensity(draws(vae, rows, columns)), columns)


def draws(vae: VAE, rows: int, columns: int) -> Tensor:
    """What is expected of rows * columns draws from the prior, [N, *X]; of a conditional model so
    many columns of each label, or of some attributes."""
    if vae.condition is None:
        return vae.sample(rows * columns)
    y = vae.condition.examples(max(rows, LABELS))
    return vae.sample(len(y) * columns, y.repeat_interleave(columns, 0))


@torch.no_grad()
def interpolations(
    vae: VAE, x0: Tensor, x1: Tensor, steps: int = 8, y: Any = None, y1: Any = None
) -> Tensor:
    """One row per pair of images, from x0 to x1 through the latent.

    Args:
        vae: The model.
        x0: Images at the left end, shape [B, C, H, W].
        x1: Images at the right end, shape [B, C, H, W].
        steps: Images in a row, both ends included.
        y: of x0, for a conditional model.
        y1: of x1.
    """
    images = vae.interpolate(x0, x1, steps, y, y1)  # [steps, B, C, H, W]
    images = vae.likelihood.intensity(images)
    return grid(images.transpose(0, 1).flatten(0, 1), columns=steps)


def active_units(kl: Tensor, most: int) -> list[int]:
    """The latent variables in use, the most used one first.

    Args:
        kl: mean over the data, shape [L], in nats; or another measure of :func:`.variables.use`.
        most: how many at most. There is always one, in use or not.
    """
    order = kl.argsort(descending=True, stable=True).tolist()
    return order[: min(most, max(int((kl > ACTIVE).sum()), 1))]


@torch.no_grad()
def traversals(
    vae: VAE,
    z: Tensor,
    units: Sequence[int | Tensor],
    steps: int = 7,
    values: Tensor | None = None,
) -> Tensor:
    """Mean images of one z with one of its variables at each of its values, the others as they are.

    Args:
        vae: The model.
        z: shape [*E].
        units: which variables, R of them; a tensor of several sets these together.
        steps: values of a variable that is not bound to fewer; see :func:`.variables.values`.
        values: to set instead, shape [V, L].

    Returns:
        Intensities, shape [R, V, C, H, W].
    """
    values = variables.values(vae, steps) if values is None else values
    return torch.stack([decoded(vae, z_set) for z_set in each(vae, z, units, values)])


@torch.no_grad()
def code_images(vae: VAE, z: Tensor, units: Sequence[int], steps: int = 7) -> Tensor:
    r"""The image that each value of a variable adds: :math:`E_z[x | z_l = k] - E_z[x]`.

    Args:
        vae: The model.
        z: of the data, over which the means are, shape [N, *E].
        units: which variables l, R of them.
        steps: as for :func:`traversals`.

    Returns:
        Differences of intensities, shape [R, V, C, H, W].
    """
    mean = decoded(vae, z).mean(0)
    added = [
        torch.stack([decoded(vae, z_set).mean(0) for z_set in values]) - mean
        for values in each(vae, z, units, variables.values(vae, steps))
    ]
    return torch.stack(added)


def decoded(vae: VAE, z: Tensor) -> Tensor:
    """The mean images of z as intensities."""
    return vae.likelihood.intensity(vae.likelihood.mean(vae.decode(z)))


def each(vae: VAE, z: Tensor, units: Sequence[int | Tensor], values: Tensor) -> Iterator[Tensor]:
    """For each of the units, z [*, *E] with all of its values [V, L], [V, *, *E]."""
    numbers = vae.latent.numbers(z)  # [*, L]
    for unit in units:
        changed = numbers.expand(len(values), *numbers.shape).clone()
        together = torch.as_tensor(unit).flatten()
        wanted = values[:, together].to(changed)  # [V, as many as are set]
        changed[..., together] = wanted.reshape(len(values), *[1] * (numbers.ndim - 1), -1)
        yield vae.latent.from_numbers(changed)


# Of latents on a grid.


def around(images: Tensor, place: tuple[int, int], side: int, reach: int = 3) -> Tensor:
    """The part of images [*, H, W] that is at most so many places of `side` pixels from one."""
    down, right = (slice(max(i - reach, 0) * side, (i + reach + 1) * side) for i in place)
    return images[..., down, right]


@torch.no_grad()
def code_patches(vae: VAE, codes: Tensor | None = None) -> Tensor:
    """What each code looks like: the middle of 3 x 3 places that all have it, [K, C, side, side].

    Args:
        vae: The model, with one code at each place.
        codes: which of them; None: all.
    """
    side = place_size(vae.network)
    small = vae.at(vae.shape[0], 3 * side, 3 * side)
    values = small.latent.values() if codes is None else small.latent.values()[codes]
    found = [
        decoded(small, small.latent.from_numbers(some))
        for some in values.split(AT_ONCE)  # a z has K numbers for each of its places
    ]
    return torch.cat(found)[..., side:-side, side:-side]


def save(grid: Tensor, path: str | Path) -> None:
    """Writes a grid as a PNG; a viewer that has the file open never sees half a picture."""
    files.write(path, content(grid))


def content(grid: Tensor) -> bytes:
    """A grid as a PNG."""
    pixels = grid.mul(255).round_().clamp_(0, 255).to(torch.uint8)
    file = io.BytesIO()
    to_pil_image(pixels.cpu()).save(file, "PNG", compress_level=1)  # twice as fast as usual
    return file.getvalue()


def grid(images: Tensor, columns: int, gap: float | None = GREY) -> Tensor:
    """Images [N, C, H, W], row by row, as one [3, height, width].

    Args:
        images: intensities.
        columns: images in a row.
        gap: the intensity between the images; None: nothing is between them.
    """
    images = images.detach().float()  # [N, C, H, W]
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)  # no colour has two channels, or five
    factor = math.ceil(CELL / min(images.shape[-2:]))
    images = F.interpolate(images, scale_factor=factor, mode="nearest")
    padding, value = (0, GREY) if gap is None else (GAP, gap)
    return make_grid(images, nrow=columns, padding=padding, pad_value=value)
