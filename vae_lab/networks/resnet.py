"""Residual blocks with group normalisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
from .layers import Residual, group_norm


@dataclass(frozen=True)
class ResNet:
    """For each entry of `channels` a halving and `blocks` residual blocks, then a dense layer.

    Halving rounds up and the decoder goes back through the same sizes, so odd ones come back too.
    Group normalisation sees one datum at a time: a datum's loss does not depend on its batch.

    Args:
        channels: channels after each halving, from the image inwards.
        blocks: residual blocks after each halving; two convolutions each.
        features: width of the dense layer between the grid and the latents.
        activation: relu, leaky_relu, tanh, elu, gelu or silu.

    Source: He, Zhang, Ren & Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016,
    arXiv:1603.05027; Wu & He, *Group Normalization*, ECCV 2018, arXiv:1803.08494
    """

    channels: Sequence[int] = (32, 64, 128)
    blocks: int = 1
    features: int = 256
    activation: str = "silu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", widths("channels", self.channels))
        check_positive("blocks", self.blocks)
        check_positive("features", self.features)
        check_activation(self.activation)

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, C, H, W] to [N, features]."""
        check_image(shape)
        layers: list[nn.Module] = []
        for a, b in zip((shape[0], *self.channels), self.channels, strict=False):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), *self._blocks(b)]
        dense = Dense(math.prod(self._grid(shape)), self.features)
        layers += [*self._normed(self.channels[-1]), nn.Flatten(), dense, self._act()]
        trunk = Encoder(*layers, features=self.features)
        initialise(trunk, gain(self.activation))
        return trunk

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from [N, latent_size] to [N, *shape]."""
        check_image(shape, latent_size)
        grid = self._grid(shape)
        layers = [Dense(latent_size, self.features), self._act()]
        layers += [Dense(self.features, math.prod(grid)), nn.Unflatten(1, grid)]
        finer = (self.channels[0], *self.channels[:-1])
        sizes = halvings(shape, len(self.channels))[:-1]
        for a, b, size in reversed(list(zip(self.channels, finer, sizes, strict=True))):
            # Nearest pixels and a plain convolution leave no checkerboard (Odena et al., 2016).
            layers += [*self._blocks(a), nn.Upsample(size), nn.Conv2d(a, b, 3, padding=1)]
        output = nn.Conv2d(self.channels[0], shape[0], 3, padding=1)
        trunk = nn.Sequential(*layers, *self._normed(self.channels[0]), output)
        initialise(trunk, gain(self.activation), output)
        return trunk

    def _grid(self, shape: Shape) -> Shape:
        return (self.channels[-1], *halvings(shape, len(self.channels))[-1])

    def _blocks(self, channels: int) -> list[nn.Module]:
        return [self._block(channels) for _ in range(self.blocks)]

    def _block(self, channels: int) -> nn.Module:
        first = nn.Conv2d(channels, channels, 3, padding=1)
        second = nn.Conv2d(channels, channels, 3, padding=1)
        return Residual(*self._normed(channels), first, *self._normed(channels), second)

    def _normed(self, channels: int) -> list[nn.Module]:
        return [group_norm(channels), self._act()]

    def _act(self) -> nn.Module:
        return nonlinearity(self.activation)
