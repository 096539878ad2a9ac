"""The latent's own prior, as a module."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributions import Distribution

from .base import Prior

if TYPE_CHECKING:
    from ..latents import Latent


class Standard(Prior):
    """What a model without a prior has: a standard normal, uniform codes. The KL to it is sampled,
    as that of a posterior that has no closed form, which has this prior if nothing else is said."""

    def __init__(self) -> None:
        super().__init__()

    def bind(self, latent: "Latent") -> None:
        self._latent = (latent,)  # in a tuple, or it would be a part of this module

    def forward(self, condition: Tensor | None) -> Distribution:
        [latent] = self._latent
        return latent.prior()

    @property
    def uniform(self) -> bool:
        [latent] = self._latent
        return latent.uniform

    @property
    def has_temperature(self) -> bool:
        [latent] = self._latent
        return latent.has_temperature

    def sample(
        self, count: int, temperature: float = 1.0, seed: int = 0, condition: Tensor | None = None
    ) -> Tensor:
        """As the latent's own."""
        [latent] = self._latent
        return latent.sample(count, temperature, seed)
