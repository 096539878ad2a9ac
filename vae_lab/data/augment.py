"""Random changes of training pictures after which they still show what they did."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .prepare import Draw, Noise, Prepare


@dataclass(frozen=True)
class Augment(Prepare):
    """Flips and crops images that are stored as bytes, [B, C, H, W] to the same; in training only.

    What is drawn is a function of the seed, the epoch, the batch and the image's row in the batch
    of all processes, like all noise of :mod:`~vae_lab.data.loader`.

    Args:
        flip: mirror each image, left to right, with probability one half.
        crop: see of each image only a random part, scaled to the image's size; the part's sides
            are this fraction of the image's up to all of them, both the same, so that nothing is
            distorted. None: all of it.
    """

    flip: bool = False
    crop: float | None = None

    def __post_init__(self) -> None:
        if self.flip not in (True, False):
            raise ValueError(f"flip must be true or false, got {self.flip!r}")
        if self.crop is not None and not 0 < self.crop < 1:
            raise ValueError(
                f"crop must be a fraction above 0 and below 1, or null, got {self.crop!r}"
            )

    def __call__(self, stored: Tensor, draw: Draw) -> Tensor:
        if self.flip:
            mirrored = draw(_uniform(1), "flip").view(-1, 1, 1, 1) < 0.5
            stored = torch.where(mirrored, stored.flip(-1), stored)
        if self.crop is not None:
            part, top, left = draw(_uniform(3), "crop").unbind(1)
            side = self.crop + (1 - self.crop) * part
            stored = resized_crop(stored, side, (1 - side) * top, (1 - side) * left)
        return stored


def resized_crop(images: Tensor, side: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Cuts a part out of each image and scales it to the image's size, bilinearly.

    A part is never larger than its image, so that it is only ever enlarged: nothing can alias.

    Args:
        images: shape [B, C, H, W], uint8.
        side: of the parts, as a fraction of the images' sides, shape [B].
        top: where the parts begin, as a fraction of the images' height, shape [B].
        left: the same, of their width.

    Returns:
        Shape [B, C, H, W], uint8.
    """
    height, width = images.shape[-2:]
    y = _pixels(height, side, top).unsqueeze(2).expand(-1, -1, width)
    x = _pixels(width, side, left).unsqueeze(1).expand(-1, height, -1)
    grid = torch.stack((x, y), -1)  # [B, H, W, 2]
    seen = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return seen.round_().byte()


def _pixels(count: int, side: Tensor, start: Tensor) -> Tensor:
    """Where the centres of so many pixels lie on an axis of the image from -1 to 1, [B, count]."""
    centres = (torch.arange(count, device=side.device) + 0.5) / count
    return 2 * (start.unsqueeze(1) + side.unsqueeze(1) * centres) - 1


def _uniform(count: int) -> Noise:
    def noise(size: int, generator: torch.Generator) -> Tensor:
        return torch.rand(size, count, generator=generator, device=generator.device)

    return noise
