"""Networks for series [T, D]: convolutions along time, and attention."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..dense import Dense
from .base import (
    Encoder,
    Shape,
    check_activation,
    check_positive,
    check_shape,
    gain,
    initialise,
    nonlinearity,
    widths,
)
from .layers import Attention, PlaceNorm, Residual, group_norm

# The layers see a series as a picture of width one: [N, C, T, 1].


@dataclass(frozen=True)
class TemporalConv:
    """Convolutions along time: for each entry of `channels` a halving and residual blocks.

    What lies near in time is seen together, whenever it happens. Halving rounds up and the decoder
    goes back through the same lengths.

    Args:
        channels: channels after each halving of the series, from the data inwards.
        blocks: residual blocks after each halving; two convolutions each.
        kernel: steps that a convolution sees, an odd number.
        features: width of the dense layer between the series and the latents.
        activation: relu, leaky_relu, tanh, elu, gelu or silu.

    Source: Bai, Kolter & Koltun, *An Empirical Evaluation of Generic Convolutional and Recurrent
    Networks for Sequence Modeling*, 2018, arXiv:1803.01271 (residual blocks; here not causal)
    """

    channels: Sequence[int] = (64, 64)
    blocks: int = 1
    kernel: int = 5
    features: int = 128
    activation: str = "silu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", widths("channels", self.channels))
        check_positive("blocks", self.blocks)
        check_positive("features", self.features)
        check_positive("kernel", self.kernel)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}: type {self.kernel + 1}")
        check_activation(self.activation)

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, T, D] to [N, features]."""
        check_series(shape)
        layers: list[nn.Module] = [ToColumns()]
        for a, b in zip((shape[1], *self.channels), self.channels, strict=False):
            layers += [self._conv(a, b, stride=2), *self._blocks(b)]
        inner = self.channels[-1] * self._lengths(shape)[-1]
        dense = Dense(inner, self.features)
        layers += [*self._normed(self.channels[-1]), nn.Flatten(), dense, self._act()]
        trunk = Encoder(*layers, features=self.features)
        initialise(trunk, gain(self.activation))
        return trunk

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from [N, latent_size] to [N, T, P]."""
        check_series(shape, latent_size)
        last, lengths = self.channels[-1], self._lengths(shape)
        layers = [Dense(latent_size, self.features), self._act()]
        layers += [Dense(self.features, last * lengths[-1]), nn.Unflatten(1, (last, -1, 1))]
        finer = (self.channels[0], *self.channels[:-1])
        for a, b, length in reversed(list(zip(self.channels, finer, lengths[:-1], strict=True))):
            layers += [*self._blocks(a), nn.Upsample((length, 1)), self._conv(a, b)]
        output = self._conv(self.channels[0], shape[1])
        trunk = nn.Sequential(*layers, *self._normed(self.channels[0]), output, ToSeries())
        initialise(trunk, gain(self.activation), output)
        return trunk

    def _lengths(self, shape: Shape) -> list[int]:
        """The lengths after 0, 1, 2, ... halvings."""
        return [-(-shape[0] // 2**stage) for stage in range(len(self.channels) + 1)]

    def _conv(self, channels: int, out: int, stride: int = 1) -> nn.Conv2d:
        around = (self.kernel // 2, 0)
        return nn.Conv2d(channels, out, (self.kernel, 1), stride=(stride, 1), padding=around)

    def _blocks(self, channels: int) -> list[nn.Module]:
        return [
            Residual(
                *self._normed(channels),
                self._conv(channels, channels),
                *self._normed(channels),
                self._conv(channels, channels),
            )
            for _ in range(self.blocks)
        ]

    def _normed(self, channels: int) -> list[nn.Module]:
        return [group_norm(channels), self._act()]

    def _act(self) -> nn.Module:
        return nonlinearity(self.activation)


@dataclass(frozen=True)
class Transformer:
    """Attention between all steps, each of which knows its place in the series.

    The features are the mean over the steps; the decoder starts with z at every step, and gives
    all steps at once.

    Args:
        width: of a step inside the network.
        layers: blocks of attention and two dense layers, of the encoder and of the decoder.
        activation: relu, leaky_relu, tanh, elu, gelu or silu.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, arXiv:1706.03762; with the
    normalisation first: Xiong et al., ICML 2020, arXiv:2002.04745
    """

    width: int = 64
    layers: int = 2
    activation: str = "gelu"

    def __post_init__(self) -> None:
        check_positive("width", self.width)
        check_positive("layers", self.layers)
        check_activation(self.activation)

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, T, D] to [N, width]."""
        check_series(shape)
        first = nn.Conv2d(shape[1], self.width, 1)
        layers = [ToColumns(), first, Places(shape[0], self.width), *self._blocks()]
        trunk = Encoder(*layers, PlaceNorm(self.width), MeanOfSteps(), features=self.width)
        initialise(trunk, 1.0)
        return trunk

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from [N, latent_size] to [N, T, P]."""
        check_series(shape, latent_size)
        layers = [Dense(latent_size, self.width), nn.Unflatten(1, (self.width, 1, 1))]
        layers += [Places(shape[0], self.width), *self._blocks(), PlaceNorm(self.width)]
        trunk = nn.Sequential(*layers, nn.Conv2d(self.width, shape[1], 1), ToSeries())
        initialise(trunk, 1.0)
        return trunk

    def _blocks(self) -> list[nn.Module]:
        width = self.width
        blocks: list[nn.Module] = []
        for _ in range(self.layers):
            seen = Attention(width), nn.Conv2d(width, width, 1)
            wide = nn.Conv2d(width, 4 * width, 1), nonlinearity(self.activation)
            blocks.append(Residual(PlaceNorm(width), *seen))
            blocks.append(Residual(PlaceNorm(width), *wide, nn.Conv2d(4 * width, width, 1)))
        return blocks


class Places(nn.Module):
    """Adds to each step what says which one it is, [N, C, T or 1, 1] -> [N, C, T, 1]."""

    def __init__(self, steps: int, channels: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(channels, steps, 1) / math.sqrt(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places


class MeanOfSteps(nn.Module):
    """[N, C, T, 1] -> [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


class ToColumns(nn.Module):
    """[N, T, D] -> [N, D, T, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unsqueeze(-1)


class ToSeries(nn.Module):
    """[N, D, T, 1] -> [N, T, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(-1).transpose(1, 2)


def check_series(shape: Shape, latent_size: int = 1) -> None:
    """Refuses a shape that is not that of a series, and a latent without entries."""
    if len(shape) != 2:
        raise ValueError(
            f"shape must be two positive integers [T, D], got {tuple(shape)}: other data than "
            "series needs an MLP or, for pictures, a Conv, ResNet or Grid network"
        )
    check_shape(shape, latent_size)
