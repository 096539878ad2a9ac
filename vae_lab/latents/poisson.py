"""Counts."""

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import Distribution, Independent

from ..estimators.base import base
from .base import Latent


class Poisson(Latent):
    r"""L independent counts, :math:`q(z|x) = \text{Poisson}(\lambda(x))`; z is [L].

    The parameters are log-rates; zeros give a prior of rate 1.

    .. math:: \mathrm{KL}_l = \lambda_l (\log \lambda_l - \log r_l) - \lambda_l + r_l
              \quad \text{for the prior's rate } r

    Args:
        latents: L.
        learn_prior: train the prior's log-rates.
    """

    discrete = True

    def __init__(self, latents: int = 64, learn_prior: bool = False) -> None:
        super().__init__((latents,), latents, learn_prior)
        self.latents = latents

    def distribution(self, parameters: Tensor) -> Distribution:
        poisson = td.Poisson(parameters.exp(), validate_args=False)
        return Independent(poisson, 1, validate_args=False)

    def kl(self, q: Distribution) -> Tensor:
        rate, log_prior = base(q).rate, self.prior_parameters
        log_rate = rate.clamp_min(torch.finfo(rate.dtype).tiny).log()  # 0 log 0 = 0
        return rate * (log_rate - log_prior - 1) + log_prior.exp()

    def mode(self, q: Distribution) -> Tensor:
        return q.mean.floor()

    def values(self, steps: int = 7) -> Tensor:
        """The counts from 0."""
        counts = torch.arange(steps, device=self.prior_parameters.device).unsqueeze(-1)
        return counts.to(self.prior_parameters).expand(-1, self.latents)

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """The counts nearest to the straight line."""
        t = torch.linspace(0, 1, steps, device=z0.device).reshape(-1, *[1] * z0.ndim)
        return (z0 + t * (z1 - z0)).round()
