"""Strided convolutions down to a grid of features, transposed ones back up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ..dense import Dense
from .base import (
    Encoder,
    Shape,
    check_activation,
    check_image,
    check_positive,
    gain,
    halvings,
    initialise,
    nonlinearity,
    widths,
)


@dataclass(frozen=True)
class Conv:
    """One strided convolution per entry of `channels`, each halving the image, then a dense layer.

    Halving rounds up, so no image is too small; the decoder goes back through the very sizes the
    encoder saw, so odd ones come back exactly.

    Args:
        channels: channels after each halving, from the image inwards.
        features: width of the dense layer between the grid and the latents.
        activation: relu, leaky_relu, tanh, elu, gelu or silu.
    """

    channels: Sequence[int] = (32, 64)
    features: int = 256
    activation: str = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", widths("channels", self.channels))
        check_positive("features", self.features)
        check_activation(self.activation)

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, C, H, W] to [N, features]."""
        check_image(shape)
        layers: list[nn.Module] = []
        for a, b in pairwise((shape[0], *self.channels)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nonlinearity(self.activation)]
        dense = Dense(math.prod(self._grid(shape)), self.features)
        layers += [nn.Flatten(), dense, nonlinearity(self.activation)]
        trunk = Encoder(*layers, features=self.features)
        initialise(trunk, gain(self.activation))
        return trunk

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from [N, latent_size] to [N, *shape]."""
        check_image(shape, latent_size)
        grid = self._grid(shape)
        layers: list[nn.Module] = []
        for a, b in pairwise((latent_size, self.features, math.prod(grid))):
            layers += [Dense(a, b), nonlinearity(self.activation)]
        layers.append(nn.Unflatten(1, grid))
        finer = (shape[0], *self.channels[:-1])
        sizes = halvings(shape, len(self.channels))[:-1]
        for a, b, size in reversed(list(zip(self.channels, finer, sizes, strict=True))):
            layers += [_double(a, b, size), nonlinearity(self.activation)]
        trunk = nn.Sequential(*layers[:-1])
        initialise(trunk, gain(self.activation), output=trunk[-1])
        return trunk

    def _grid(self, shape: Shape) -> Shape:
        return (self.channels[-1], *halvings(shape, len(self.channels))[-1])


def _double(channels: int, out_channels: int, size: tuple[int, int]) -> nn.ConvTranspose2d:
    """Transposed convolution onto an image of `size` from one of half of it, rounded up."""
    odd = (size[0] % 2, size[1] % 2)
    # A kernel of 4 overlaps evenly at stride 2 (3 leaves a checkerboard). From h pixels it gives
    # 2h + 2 - 2 * padding + output_padding: 2h with (1, 0), 2h - 1 with (2, 1).
    padding = (1 + odd[0], 1 + odd[1])
    return nn.ConvTranspose2d(channels, out_channels, 4, 2, padding, output_padding=odd)
