"""Shared by the networks: their contract, the activations, the initialisation, the checks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from ..inputs import Shape

Layer = TypeVar("Layer", bound=nn.Module)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class Network(Protocol):
    """A recipe for an encoder and a decoder; no layer mixes the data of a batch (no BatchNorm).

    A fully convolutional one also has a `stride`: so many pixels, along each side, are one place of
    a grid. Its encoder gives features [N, h, w, features], its decoder takes latents
    [N, h, w, latent_size] and gives h * stride x w * stride pixels, of which the VAE cuts out the
    picture. It takes pictures of any size.
    """

    def encoder(self, shape: Shape) -> "Encoder":
        """Module from data [N, *shape] to features [N, features]."""

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Module from flat latents [N, latent_size] to likelihood parameters [N, *shape]."""


def grid(network: Network, shape: Shape) -> Shape:
    """The places (h, w) at which a network has latent variables of an image; () if it is flat."""
    if not hasattr(network, "stride"):
        return ()
    size = place_size(network)
    return tuple(-(-side // size) for side in shape[1:])


def place_size(network: Network) -> int:
    """The pixels along each side of a place of a network's grid; 1 if it is flat."""
    return int(getattr(network, "stride", 1))


class Encoder(nn.Sequential):
    """Layers in a row that announce how many features the last one gives."""

    def __init__(self, *layers: nn.Module, features: int) -> None:
        super().__init__(*layers)
        self.features = features


def nonlinearity(name: str, **settings: Any) -> nn.Module:
    """The activation module called `name`."""
    return ACTIVATIONS[name](**settings)


def gain(name: str, **settings: Any) -> float:
    r"""Factor on the weights that makes up for what the activation f takes from the variance.

    .. math:: g = \mathbb{E}_{h \sim N(0, 1)}[f(h)^2]^{-1/2}

    It is sqrt(2) for the ReLU (He et al., 2015); the same definition serves every other activation.

    Source: He, Zhang, Ren & Sun, *Delving Deep into Rectifiers*, ICCV 2015, arXiv:1502.01852
    """
    h = torch.linspace(-10, 10, 2001, dtype=torch.float64, device="cpu")
    density = torch.exp(-h.square() / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(nonlinearity(name, **settings)(h).square() * density, h).item() ** -0.5


def initialise(trunk: nn.Module, factor: float, output: nn.Module | None = None) -> None:
    """Draw normal weights of standard deviation factor / sqrt(fan_in) and set the biases to zero.

    Layers on the meta device, which have no values, are left as they are.

    Args:
        trunk: its linear and convolutional layers are set, in place.
        factor: the :func:`gain` of the activation between the layers.
        output: the layer that no activation follows: its factor is 1.
    """
    for layer in trunk.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if layer.weight.is_meta:  # to draw nothing there, torch would import its compiler
                continue
            numerator = 1.0 if layer is output else factor
            nn.init.normal_(layer.weight, std=numerator / math.sqrt(_fan_in(layer)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def from_zero(layer: Layer) -> Layer:
    """The layer, which gives nothing until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    if isinstance(layer, nn.ConvTranspose2d):
        # Only one in stride**2 of the kernel's taps falls on an input pixel.
        return layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
    return layer.weight[0].numel()


def halvings(image: Shape, stages: int) -> list[tuple[int, int]]:
    """Sizes [(height, width), ...] of an image after 0, 1, ..., `stages` halvings that round up."""
    _, height, width = image
    return [(-(-height // 2**s), -(-width // 2**s)) for s in range(stages + 1)]


def widths(name: str, values: Sequence[int], empty: bool = False) -> tuple[int, ...]:
    """`values` as a tuple, refused unless it is a sequence of positive integers."""
    if isinstance(values, Sequence) and (values or empty) and all(map(_is_positive, values)):
        return tuple(values)
    kind = "sequence" if empty else "non-empty sequence"
    raise ValueError(f"{name} must be a {kind} of positive integers, got {values!r}")


def check_positive(name: str, value: int) -> None:
    """Refuse what is not a positive integer."""
    if not _is_positive(value):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_activation(name: str, *others: str) -> None:
    """Refuse an unknown activation, and list the known ones, among them a network's own others."""
    check_choice("activation", name, [*ACTIVATIONS, *others])


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse what is not among the choices, and list them."""
    if value not in (known := list(choices)):
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


def check_shape(shape: Shape, latent_size: int = 1) -> None:
    """Refuse a shape of data without axes or values, and a latent without entries."""
    if not shape or not all(map(_is_positive, shape)):
        raise ValueError(f"shape must be positive integers, as [C, H, W], got {tuple(shape)}")
    check_positive("latent_size", latent_size)


def check_image(shape: Shape, latent_size: int = 1) -> None:
    """Refuse a shape that is not that of an image, and a latent without entries."""
    if len(shape) != 3:
        raise ValueError(
            f"shape must be three positive integers [C, H, W], got {tuple(shape)}: "
            "other data than images needs an MLP or Linear network"
        )
    check_shape(shape, latent_size)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
