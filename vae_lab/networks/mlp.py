"""Fully connected layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

GATED = "glu"
LEAKY = "leaky_relu"
SLOPE = 0.01  # torch's own
GATED_GAIN = 1.8462  # E[h^2 sigmoid(g)^2]^(-1/2) for two normal variables


@dataclass(frozen=True)
class MLP:
    r"""Fully connected layers with an activation after each; the decoder has them in reverse.

    Args:
        hidden: widths from the datum to the features; none of them gives the `Linear` network.
        activation: relu, leaky_relu, tanh, elu, gelu or silu; or glu: gated linear units,
            :math:`(W h + b) \, \sigma(V h + c)`.
        negative_slope: of leaky_relu below zero.

    Source of the gates: Dauphin, Fan, Auli & Grangier, *Language Modeling with Gated Convolutional
    Networks*, ICML 2017, arXiv:1612.08083
    """

    hidden: Sequence[int] = (512, 256)
    activation: str = "relu"
    negative_slope: float = SLOPE

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", widths("hidden", self.hidden, empty=True))
        if self.activation != GATED:
            check_activation(self.activation, GATED)
        if self.activation != LEAKY and self.negative_slope != SLOPE:
            raise ValueError(
                f"negative_slope is that of activation={LEAKY}, got {self.negative_slope} with "
                f"{self.activation}"
            )

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, *shape], of any number of axes, to [N, hidden[-1]]."""
        check_shape(shape)
        sizes = (math.prod(shape), *self.hidden)
        trunk = Encoder(nn.Flatten(), *self._layers(sizes), features=sizes[-1])
        initialise(trunk, self._gain)
        return trunk

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from [N, latent_size] to [N, *shape]."""
        check_shape(shape, latent_size)
        mirror = replace(self, hidden=self.hidden[::-1])
        layers = mirror.between(latent_size, math.prod(shape))
        return nn.Sequential(*layers, nn.Unflatten(1, shape))

    def between(self, size: int, other: int) -> nn.Sequential:
        """Module from vectors [*, size] to [*, other], with layers of these widths on the way."""
        sizes = (size, *self.hidden)
        output = Dense(sizes[-1], other)
        trunk = nn.Sequential(*self._layers(sizes), output)
        initialise(trunk, self._gain, output)
        return trunk

    @property
    def _gain(self) -> float:
        return GATED_GAIN if self.activation == GATED else gain(self.activation, **self._slope)

    @property
    def _slope(self) -> dict[str, float]:
        return {"negative_slope": self.negative_slope} if self.activation == LEAKY else {}

    def _layers(self, sizes: Sequence[int]) -> list[nn.Module]:
        gated = self.activation == GATED
        return [
            part
            for a, b in pairwise(sizes)
            for part in (
                (Dense(a, 2 * b), nn.GLU(-1))
                if gated
                else (Dense(a, b), nonlinearity(self.activation, **self._slope))
            )
        ]
