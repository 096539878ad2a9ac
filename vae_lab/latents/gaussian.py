"""Diagonal Gaussian latents."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from ..estimators.base import base
from .base import Latent


class Gaussian(Latent):
    r"""D independent Gaussians, :math:`q(z|x) = \mathcal{N}(\mu, \operatorname{diag} \sigma^2)`.

    The parameters are the mean and log sigma; zeros give the standard normal prior.

    .. math:: \mathrm{KL}_d = \log \tfrac{s}{\sigma}
              + \tfrac{\sigma^2 + (\mu - m)^2}{2 s^2} - \tfrac{1}{2}
              \quad \text{for the prior } \mathcal{N}(m, s^2)

    Args:
        latents: D.
        learn_prior: train the prior's mean and log sigma.
    """

    discrete = False

    def __init__(self, latents: int = 20, learn_prior: bool = False) -> None:
        super().__init__((latents,), 2 * latents, learn_prior)
        self.latents = latents

    def distribution(self, parameters: Tensor) -> Distribution:
        mean, log_scale = parameters.chunk(2, -1)
        normal = Normal(mean, log_scale.exp(), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def kl(self, q: Distribution) -> Tensor:
        posterior = base(q)
        mean, log_scale = self.prior_parameters.chunk(2, -1)
        scale = log_scale.exp()
        # torch's own takes the logarithm of sigma**2, which underflows long before sigma does.
        ratio = posterior.scale / scale
        distance = (posterior.loc - mean) / scale
        return 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()

    def mode(self, q: Distribution) -> Tensor:
        return q.mean

    def values(self, steps: int = 7) -> Tensor:
        """From -3 to 3 standard deviations of the prior around its mean."""
        prior = self.prior()
        deviations = torch.linspace(-3, 3, steps, device=prior.mean.device).unsqueeze(-1)
        return prior.mean + deviations * prior.stddev

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """Spherical: the straight line runs through lengths that the prior does not have."""
        t = torch.linspace(0, 1, steps, device=z0.device).reshape(-1, *[1] * z0.ndim)
        cosine = torch.cosine_similarity(z0, z1, dim=-1).clamp(-1 + 1e-6, 1 - 1e-6).unsqueeze(-1)
        angle = cosine.acos()
        arc = ((1 - t) * angle).sin() / angle.sin() * z0 + (t * angle).sin() / angle.sin() * z1
        # Of (nearly) parallel vectors, as all are of one dimension, there is no one arc.
        return torch.where(cosine.abs() < 1 - 1e-5, arc, (1 - t) * z0 + t * z1)
