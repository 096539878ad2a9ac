"""White shapes on black, drawn from known factors: nothing to download."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.base import ImageDataModule, Images
from vae_lab.data.splits import check_size, count_of
from vae_lab.seeding import derive_seed

SHAPES = ("square", "ellipse", "heart")
SCALES = 6  # from 0.5 to 1
SAMPLES = 8  # of a pixel, in each direction
TURN = torch.pi / 2


@dataclass(kw_only=True, eq=False)
class Sprites(ImageDataModule):
    """Every combination of five factors, one image each, after dSprites.

    The factors are the shape (square, ellipse, heart), the scale (6), the rotation, and the place,
    x and y. By default that makes 36864 images, 151 MB; those of dSprites' own grid, 737280, are
    `rotations=40 positions=32`. The label of an image is the number of its combination, and
    :meth:`factors` says what that combination is.

    Unlike in dSprites edges are antialiased (64 samples a pixel) and shapes turn by less than 90
    degrees: a full turn would show each square four times and each ellipse twice, and a random
    split would put an image in the test that was trained on. No two images of the default grid are
    equal. In small ones (`image_size=16`), and as bits with `rotations=40`, a few per cent are.

    Args:
        image_size: side of the images, 16 or more; the sprites grow with them.
        rotations: how many, evenly over [0, 90) degrees.
        positions: how many in each direction, a whole number of pixels apart, within the middle
            half of the image; at most half of `image_size`.
        test_size: a count, or a fraction below 1 of all images; always the same ones.

    Source: Matthey, Higgins, Hassabis & Lerchner, *dSprites: Disentanglement testing Sprites
    dataset*, 2017
    """

    image_size: int = 64
    rotations: int = 8
    positions: int = 16
    test_size: int | float = 0.1

    factor_names: ClassVar[tuple[str, ...]] = ("shape", "scale", "rotation", "x", "y")
    categorical_factors: ClassVar[tuple[int, ...]] = (0,)  # the others have an order

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 16:
            raise ValueError(f"image_size must be at least 16, got {self.image_size}")
        if self.rotations < 1:
            raise ValueError(f"rotations must be at least 1, got {self.rotations}")
        if not 1 <= self.positions <= self.image_size // 2:
            raise ValueError(
                f"positions must be from 1 to image_size / 2 = {self.image_size // 2}, "
                f"got {self.positions}"
            )
        check_size("test_size", self.test_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, self.image_size, self.image_size)

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """The number of values of each factor."""
        return (len(SHAPES), SCALES, self.rotations, self.positions, self.positions)

    def factors(self, y: Tensor) -> Tensor:
        """The combinations with these numbers [N], as one number per factor, [N, 5] int64."""
        return torch.stack(torch.unravel_index(y, self.factor_sizes), dim=1)

    def load(self) -> Images:
        total = math.prod(self.factor_sizes)
        generator = torch.Generator().manual_seed(derive_seed("sprites"))
        # In no order, so that the first few images of every split are of all kinds.
        labels = torch.randperm(total, generator=generator)
        images, test = self._draw(labels), count_of(total, self.test_size)
        return Images(images[test:], labels[test:], images[:test], labels[:test])

    def _draw(self, labels: Tensor) -> Tensor:
        """The images with these numbers, which are all, [N, 1, H, W] uint8.

        A shape of one size and rotation is drawn once, in the middle of a canvas; the images of all
        its places are windows of this canvas.
        """
        side, count = self.image_size, self.positions
        step = side // 2 // count
        canvas = side + step * (count - 1)
        images = torch.empty((len(labels), side, side), dtype=torch.uint8)
        rows = labels.argsort().split(count**2)  # of every sprite's images
        for some, sprite in zip(rows, self._sprites(canvas), strict=True):
            windows = sprite.unfold(0, side, step).unfold(1, side, step)  # [y, x, H, W]
            # The window furthest to the right has the sprite furthest to the left.
            images[some] = windows.transpose(0, 1).flip(0, 1).reshape(-1, side, side)
        return images.unsqueeze(1)

    def _sprites(self, canvas: int) -> Iterator[Tensor]:
        """Every shape in every scale and rotation, [canvas, canvas] uint8."""
        black = (canvas - self.image_size // 2) // 2 - 1  # on every side, where no sprite reaches
        box = canvas - 2 * black
        fine = (torch.arange(box * SAMPLES) + 0.5) / SAMPLES - box / 2  # pixels from the middle
        y, x = torch.meshgrid(fine, fine, indexing="ij")
        radius = self.image_size / 4
        scales = torch.linspace(0.5, 1, SCALES) * radius
        angles = torch.arange(self.rotations) * (TURN / self.rotations)
        for shape, scale, angle in product(SHAPES, scales, angles):
            u = (x * angle.cos() + y * angle.sin()) / scale
            v = (y * angle.cos() - x * angle.sin()) / scale
            covered = _inside(shape, u, v).float().view(box, SAMPLES, box, SAMPLES)
            yield F.pad(covered.mean((1, 3)).mul(255).round().byte(), [black] * 4)


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """True at the points inside a shape that fits into the unit circle; u goes right, v down."""
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) < 0.7
    if shape == "ellipse":
        return u.square() + (v / 0.5).square() < 1
    a, b = 1.3 * u, 0.3 - 1.3 * v
    return (a.square() + b.square() - 1) ** 3 < a.square() * b**3
