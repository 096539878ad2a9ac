"""Pictures of a VAE: functions from a model and images to a grid, and one that writes a PNG.

A grid is one image [3, height, width], floats in [0, 1]. The cells keep their pixels: small images
are enlarged by a whole factor without smoothing. None of the functions tracks gradients or changes
the model's mode; noise comes from torch's default generator.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from .vae import VAE

CELL = 64  # pixels that the shorter side of a cell has at least
GAP = 4  # pixels between cells
GREY = 0.5  # of the gaps: neither the black nor the white that images often have at their border
BAND = 12  # pixels of white between the originals and their reconstructions


@torch.no_grad()
def reconstructions(vae: VAE, x: Tensor) -> Tensor:
    """The images x [B, C, H, W] in a row, a white band, and their reconstructions below.

    Args:
        vae: The model.
        x: Images in [0, 1], shape [B, C, H, W].
    """
    originals, decoded = _grid(x, columns=len(x)), _grid(vae.reconstruct(x), columns=len(x))
    band = originals.new_ones(3, BAND, originals.shape[-1])
    return torch.cat([originals, band, decoded], dim=1)


@torch.no_grad()
def samples(vae: VAE, rows: int = 8, columns: int = 8) -> Tensor:
    """Mean images of rows * columns draws from the prior."""
    return _grid(vae.sample(rows * columns), columns)


@torch.no_grad()
def interpolations(vae: VAE, x0: Tensor, x1: Tensor, steps: int = 8) -> Tensor:
    """One row per pair of images, from x0 to x1 through the latent.

    Args:
        vae: The model.
        x0: Images at the left end, shape [B, C, H, W].
        x1: Images at the right end, shape [B, C, H, W].
        steps: Images in a row, both ends included.
    """
    images = vae.interpolate(x0, x1, steps)  # [steps, B, C, H, W]
    return _grid(images.transpose(0, 1).flatten(0, 1), columns=steps)


def save(grid: Tensor, path: str | Path) -> None:
    """Writes a grid as a PNG; a viewer that has the file open never sees half a picture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pixels = grid.clamp(0, 1).mul(255).round().to(torch.uint8)
    to_pil_image(pixels.cpu()).save(partial, format="PNG")
    partial.replace(path)


def _grid(images: Tensor, columns: int) -> Tensor:
    images = images.detach().float()  # [N, C, H, W]
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)  # no colour has two channels, or five
    factor = math.ceil(CELL / min(images.shape[-2:]))
    images = F.interpolate(images, scale_factor=factor, mode="nearest")
    return make_grid(images, nrow=columns, padding=GAP, pad_value=GREY)
