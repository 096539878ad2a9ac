"""Fully connected layers."""

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
    check_shape,
    gain,
    initialise,
    nonlinearity,
    widths,
)


@dataclass(frozen=True)
class MLP:
    """Fully connected layers with an activation after each; the decoder has them in reverse.

    Args:
        hidden: widths from the datum to the features; none of them gives the `Linear` network.
        activation: relu, leaky_relu, tanh, elu, gelu or silu.
    """

    hidden: Sequence[int] = (512, 256)
    activation: str = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", widths("hidden", self.hidden, empty=True))
        check_activation(self.activation)

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, *shape], of any number of axes, to [N, hidden[-1]]."""
        check_shape(shape)
        sizes = (math.prod(shape), *self.hidden)
        trunk = Encoder(nn.Flatten(), *self._layers(sizes), features=sizes[-1])
        initialise(trunk, gain(self.activation))
        return trunk

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from [N, latent_size] to [N, *shape]."""
        check_shape(shape, latent_size)
        sizes = (latent_size, *reversed(self.hidden))
        output = Dense(sizes[-1], math.prod(shape))
        trunk = nn.Sequential(*self._layers(sizes), output, nn.Unflatten(1, shape))
        initialise(trunk, gain(self.activation), output)
        return trunk

    def _layers(self, sizes: Sequence[int]) -> list[nn.Module]:
        pairs = pairwise(sizes)
        return [part for a, b in pairs for part in (Dense(a, b), nonlinearity(self.activation))]
