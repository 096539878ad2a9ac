"""Normalizing flows, which are zuko's."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.transforms import ReshapeTransform

from ..flows import Kind, network
from ..networks.base import check_choice, check_positive, widths
from ..precision import FullPrecision
from ..seeding import seeded
from .base import Prior, Standardizer, at_places, over_places

if TYPE_CHECKING:
    from ..latents import Latent


class Flow(FullPrecision, Prior):
    r"""A normalizing flow over numbers without bounds: a standard normal, which networks bend.

    .. math:: \log p(z) = \log \mathcal{N}(f(z); 0, I) + \log \left| \det f'(z) \right|

    Each transformation is affine in a part of the variables, with a shift and a scale that depend
    on the others (coupling) or on those before (autoregressive). It starts as the standard normal.
    On a grid each place is a draw of its own, and all places have the flow in common. Given y, the
    networks see it too.

    Args:
        kind: coupling draws fast; autoregressive bends more, and draws one variable after the
            other.
        transforms: transformations in a row.
        hidden: widths of the network in each of them.

    Source: Dinh, Sohl-Dickstein & Bengio, *Density Estimation using Real NVP*, ICLR 2017,
    arXiv:1605.08803; Papamakarios, Pavlakou & Murray, *Masked Autoregressive Flow for Density
    Estimation*, NeurIPS 2017, arXiv:1705.07057
    """

    has_temperature = True
    takes_condition = True

    def __init__(
        self,
        kind: Kind = "coupling",
        transforms: int = 4,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        check_choice("kind", kind, get_args(Kind))
        check_positive("transforms", transforms)
        self.kind, self.transforms = kind, transforms
        self.hidden = widths("hidden", hidden)

    def bind(self, latent: "Latent") -> None:
        size = math.prod(latent.variables)
        if latent.kind != "numbers":
            raise ValueError(
                f"a flow is over numbers, {type(latent).__name__} has {latent.kind}: type "
                "prior=mixture or prior=autoregressive"
            )
        if latent.bounds != (-math.inf, math.inf):
            low, high = latent.bounds
            raise ValueError(
                f"a flow is over all numbers, {type(latent).__name__} has those from {low:g} to "
                f"{high:g}: type prior=mixture or prior=autoregressive"
            )
        if self.kind == "coupling" and size < 2:
            raise ValueError("kind=coupling needs 2 latents or more, got 1: use autoregressive")
        self._latent = (latent,)
        self.units = Standardizer(latent.variables)
        self.flow = network(self.kind, size, self.transforms, self.hidden, self.condition_width)

    def meet(self, z: Tensor) -> None:
        self.units.meet(z)

    def forward(self, condition: Tensor | None) -> Distribution:
        [latent] = self._latent
        variables = torch.Size(latent.variables)
        reshaped = ReshapeTransform(torch.Size([variables.numel()]), variables)
        of_y = self.flow(at_places(latent, condition))
        flow = TransformedDistribution(of_y, [reshaped], validate_args=False)
        return over_places(latent, self.units.undone(flow))

    @torch.no_grad()
    def sample(
        self, count: int, temperature: float = 1.0, seed: int = 0, condition: Tensor | None = None
    ) -> Tensor:
        """The normal draws are `temperature` times as long as usual before they are bent."""
        [latent] = self._latent
        transform, base = self.flow.transform(at_places(latent, condition)), self.flow.base()
        with seeded(seed, next(self.parameters()).device):
            normal = temperature * base.sample((count, *latent.grid))
        z = transform.inv(normal).reshape(count, *latent.event_shape)
        return self.units.inverse(z)
