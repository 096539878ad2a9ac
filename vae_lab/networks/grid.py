"""Residual convolutions from a picture to a grid of features and back, for pictures of any size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn

from ..dense import Dense
from .base import (
    Encoder,
    Shape,
    check_activation,
    check_choice,
    check_image,
    check_positive,
    gain,
    grid,
    initialise,
    nonlinearity,
    widths,
)
from .layers import (
    Attention,
    DoublingConv,
    PadToMultiple,
    PlaceNorm,
    Residual,
    SubPixels,
    ToChannels,
    ToPlaces,
    group_norm,
)

Padding = Literal["zeros", "reflect", "replicate", "circular"]
Norm = Literal["place", "group"]
AROUND = {  # a picture whose pixels are doubled afterwards
    "zeros": nn.ZeroPad2d,
    "reflect": nn.ReplicationPad2d,  # the pixel beside the outermost of two equal ones is the other
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


@dataclass(frozen=True)
class Grid:
    """A fully convolutional network: latent variables at each place of a grid.

    For each entry of `channels` a halving and `blocks` residual blocks; there is no dense layer. A
    place of the grid stands for :attr:`stride` x :attr:`stride` pixels, so that 96 x 96 pixels and
    three halvings give 12 x 12 places. Nothing depends on the size of a picture, so that a trained
    model takes any other: :meth:`vae_lab.VAE.at`. On the way up pixels are doubled and then
    convolved, which leaves no checkerboard (Odena et al., 2016); the last time a convolution gives
    four pixels for each (Shi et al., 2016), which begin alike, so that it leaves none either
    (Aitken et al., 2017, arXiv:1707.02937).

    Args:
        channels: channels after each halving, from the picture inwards.
        blocks: residual blocks after each halving; two convolutions each.
        attention: let the places of the grid look at each other, in the encoder and the decoder.
        norm: over the channels of each place (Ba et al., 2016), so that a place depends on what is
            near it only; or over groups of channels and the whole picture (Wu & He, 2018).
        padding: what lies around a picture.
        activation: relu, leaky_relu, tanh, elu, gelu or silu.
        checkpointing: keep no activations inside of the blocks for the gradient, but compute them
            again: less memory, up to a fifth more time, the same numbers.

    Source: He, Zhang, Ren & Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016,
    arXiv:1603.05027; the grid of latents: van den Oord, Vinyals & Kavukcuoglu, *Neural Discrete
    Representation Learning*, NeurIPS 2017, arXiv:1711.00937
    """

    channels: Sequence[int] = (32, 48, 64)
    blocks: int = 1
    attention: bool = False
    norm: Norm = "place"
    padding: Padding = "zeros"
    activation: str = "silu"
    checkpointing: bool = field(default=False, compare=False)  # computes the same

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", widths("channels", self.channels))
        check_positive("blocks", self.blocks)
        check_choice("norm", self.norm, get_args(Norm))
        if self.norm == "place" and 1 in self.channels:
            raise ValueError(
                f"norm=place needs 2 channels or more, got {self.channels}: the one of a place is "
                "always 0 after it"
            )
        check_choice("padding", self.padding, get_args(Padding))
        check_activation(self.activation)

    @property
    def stride(self) -> int:
        """How many pixels, along each side, a place of the grid stands for."""
        return 2 ** len(self.channels)

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, C, H, W] to [N, h, w, features]; h is H / stride, rounded up."""
        check_image(shape)
        places = grid(self, shape)
        if self.padding == "reflect" and min(places) < 2:
            raise ValueError(
                f"padding=reflect needs 2 x 2 places or more, got {places[0]} x {places[1]} of "
                f"{self.stride} pixels: use replicate, or fewer channels"
            )
        layers: list[nn.Module] = [PadToMultiple(self.stride)]
        for a, b in pairwise((shape[0], *self.channels)):
            layers += [self._conv(a, b, 4, stride=2, padding=1), *self._blocks(b)]
        layers += [*self._attention(), ToPlaces()]  # no activation: it would favour a few codes
        trunk = Encoder(*layers, features=self.channels[-1])
        self._initialise(trunk)
        return trunk

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from [N, h, w, latent_size] to [N, C', h * stride, w * stride]."""
        check_image(shape, latent_size)
        widest = self.channels[-1]
        layers: list[nn.Module] = [Dense(latent_size, widest), ToChannels(), *self._attention()]
        layers += self._blocks(widest)
        for a, b in pairwise(reversed(self.channels)):
            layers += [AROUND[self.padding](1), DoublingConv(a, b), *self._blocks(b)]
        output = self._conv(self.channels[0], 4 * shape[0], 3)
        layers += [self._norm(self.channels[0]), self._act(), output, SubPixels()]
        trunk = nn.Sequential(*layers)
        self._initialise(trunk, output)
        if not output.weight.is_meta:
            with torch.no_grad():  # the four pixels that are made of one begin alike
                output.weight.copy_(output.weight[::4].repeat_interleave(4, 0))
        return trunk

    def _conv(self, a: int, b: int, kernel: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
        return nn.Conv2d(a, b, kernel, stride, padding, padding_mode=self.padding)

    def _blocks(self, channels: int) -> list[nn.Module]:
        return [self._block(channels) for _ in range(self.blocks)]

    def _block(self, channels: int) -> nn.Module:
        first, second = (self._conv(channels, channels, 3) for _ in range(2))
        norms = [self._norm(channels), self._act()], [self._norm(channels), self._act()]
        return self._around(*norms[0], first, *norms[1], second)

    def _attention(self) -> list[nn.Module]:
        if not self.attention:
            return []
        channels = self.channels[-1]
        output = nn.Conv2d(channels, channels, 1)
        return [self._around(self._norm(channels), Attention(channels), output)]

    def _around(self, *layers: nn.Module) -> nn.Module:
        return Residual(*layers, checkpointing=self.checkpointing)

    def _norm(self, channels: int) -> nn.Module:
        if self.norm == "place":
            return PlaceNorm(channels)
        return group_norm(channels)

    def _act(self) -> nn.Module:
        return nonlinearity(self.activation)

    def _initialise(self, trunk: nn.Module, output: nn.Module | None = None) -> None:
        initialise(trunk, gain(self.activation), output)
        for layer in trunk.modules():
            if isinstance(layer, Residual):
                layer.start_as_identity()
