"""Gaussian latents in several levels, of which only the lowest is seen by the decoder."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..ancestral import Ancestral
from ..distributions import base, normal
from ..networks.base import widths
from ..networks.mlp import MLP
from ..precision import FullPrecision
from .base import Latent
from .gaussian import Gaussian, normal_log_densities


class HierarchicalGaussian(FullPrecision, Latent):
    r"""Several vectors of numbers, each with a prior that the one above it gives; z has them all.

    .. math:: q(z|x) = q(z_1|x) \prod_i q(z_{i+1}|z_i), \qquad
              p(x, z) = p(x|z_1) \prod_i p(z_i|z_{i+1}) \; \mathcal{N}(z_n; 0, 1)

    All factors are diagonal Gaussians, whose means and log sigmas networks give. The decoder sees
    z_1 only; what is above is a prior of it that is learned, and can have any number of modes. The
    KL is sampled, and that of the whole z; all objectives of several samples take it as any other
    z. On a grid each place is a hierarchy of its own, with the same networks. What `mode` and the
    mean of q give is of each level the mean given that below: neither the most probable z nor the
    average of all. Another prior takes the place of all of p(z).

    Args:
        latents: D of each level, from that which the decoder sees.
        hidden: widths of each network from a level to another one, from its input to its output.
        activation: of these networks, as in :class:`~vae_lab.networks.MLP`.

    Of three numbers the decoder sees the first two:

    >>> import torch
    >>> latent = HierarchicalGaussian(latents=(2, 1), hidden=(4,))
    >>> q = latent.distribution(torch.tensor([0.5, -1.0, 0.0, 0.0]))  # two means, two log sigmas
    >>> z = latent.mode(q)
    >>> print(list(z.shape), latent.embed(z).detach())
    [3] tensor([ 0.5000, -1.0000])

    Source: Rezende, Mohamed & Wierstra, *Stochastic Backpropagation and Approximate Inference in
    Deep Generative Models*, ICML 2014, arXiv:1401.4082; Burda, Grosse & Salakhutdinov,
    *Importance Weighted Autoencoders*, ICLR 2016, arXiv:1509.00519
    """

    closed_kl = False
    has_units = False  # what is above would have to be scaled with it

    def __init__(
        self,
        latents: Sequence[int] = (20, 10),
        hidden: Sequence[int] = (128,),
        activation: str = "relu",
    ) -> None:
        latents, hidden = widths("latents", latents), widths("hidden", hidden, empty=True)
        if len(latents) < 2:
            raise ValueError(
                f"latents must be those of two levels or more, got {[*latents]}: use Gaussian"
            )
        super().__init__((sum(latents),), 2 * latents[0], False, 2 * latents[-1])
        self.latents, self.hidden, self.activation = latents, hidden, activation
        recipe = MLP(hidden, activation)
        self.up = nn.ModuleList(_network(recipe, *pair) for pair in pairwise(latents))
        self.down = nn.ModuleList(_network(recipe, *pair) for pair in pairwise(latents[::-1]))

    @property
    def width(self) -> int:
        return self.latents[0]

    def embed(self, z: Tensor) -> Tensor:
        return z[..., : self.width]

    def distribution(self, parameters: Tensor) -> Distribution:
        lowest = normal(parameters)
        return self.independent(Ancestral(lowest.loc, lowest.scale, self.up, self.latents))

    def prior_distribution(self, parameters: Tensor) -> Distribution:
        top = normal(parameters)
        sizes = self.latents[::-1]
        return self.independent(Ancestral(top.loc, top.scale, self.down, sizes, last_first=True))

    def log_densities(self, q: Distribution, z: Tensor) -> Tensor:
        """What is given the first vector of a chain is the same for all q of one network."""
        inner = base(q)
        leading = z.shape[: z.ndim - len(self.event_shape)]
        first, others = inner.apart(z)
        of_first = normal_log_densities(inner.loc, inner.scale, first.flatten(len(leading)))
        return of_first + others.reshape(*leading, self.num_places).sum(-1, keepdim=True)

    @property
    def factorised(self) -> Latent:
        plain = Gaussian(sum(self.latents))
        plain.bind(self.grid)
        return plain

    @property
    def seen(self) -> Tensor:
        lowest = torch.arange(sum(self.latents)) < self.width
        return lowest.repeat(self.num_places)

    def leave_prior(self) -> None:
        self.down.requires_grad_(False)

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        r"""Draws from the prior, [count, \*E]; each number is t times as far from its mean, given
        those above, as at a temperature of 1."""
        with self._seeded(seed):
            drawn: Tensor = base(self.prior()).tempered(temperature, (count,))
        return drawn


def _network(recipe: MLP, size: int, other: int) -> nn.Sequential:
    """z of a level -> the means and log sigmas of another one, whose sigma is 1 at the start: that
    of a level far out would else be tiny, or huge."""
    network = recipe.between(size, 2 * other)
    with torch.no_grad():
        cast(nn.Linear, network[-1]).weight[other:] = 0
    return network
