"""Diagonal Gaussian latents."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import base, normal, precise
from .base import WIDTH, Latent


class Gaussian(Latent):
    r"""D independent Gaussians, :math:`q(z|x) = \mathcal{N}(\mu, \operatorname{diag} \sigma^2)`.

    The parameters are the mean and log sigma, which is kept in [-40, 10], so that nothing
    overflows. Zeros give the standard normal prior.

    .. math:: \mathrm{KL}_d = \log \tfrac{s}{\sigma}
              + \tfrac{\sigma^2 + (\mu - m)^2}{2 s^2} - \tfrac{1}{2}
              \quad \text{for the prior } \mathcal{N}(m, s^2)

    Args:
        latents: D.
        learn_prior: train the prior's mean and log sigma.

    A z is D numbers. A posterior that is the prior has a KL of 0, and 2 standard deviations away
    from it one of 2 nats:

    >>> import torch
    >>> latent = Gaussian(latents=2)
    >>> q = latent.distribution(torch.tensor([0.0, 2.0, 0.0, 0.0]))  # two means, two log sigmas
    >>> latent.mode(q)
    tensor([0., 2.])
    >>> latent.kl(q)
    tensor([0., 2.])
    """

    def __init__(self, latents: int = 20, learn_prior: bool = False) -> None:
        super().__init__((latents,), 2 * latents, learn_prior)
        self.latents = latents

    def distribution(self, parameters: Tensor) -> Distribution:
        return self.independent(normal(parameters))

    def log_densities(self, q: Distribution, z: Tensor) -> Tensor:
        return normal_log_densities(base(q).loc, base(q).scale, self.numbers(z))

    def values(self, steps: int = 7) -> Tensor:
        """From -3 to 3 standard deviations of the prior around its mean."""
        deviations = torch.linspace(-WIDTH, WIDTH, steps, device=self.prior_parameters.device)
        return self._from_mean(deviations.reshape(-1, *[1] * len(self.event_shape)))

    def value_names(self, count: int) -> tuple[list[str], str]:
        deviations = torch.linspace(-WIDTH, WIDTH, count).tolist()
        return [f"{d:g}" for d in deviations], "standard deviations of the prior"

    def around(self, z: Tensor) -> Tensor:
        """Half way to each z, with what that leaves of a variance of 1."""
        z = z.flatten(1)
        return torch.cat([z / 2, torch.full_like(z, 0.75).sqrt().log()], -1)

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """Spherical: the straight line runs through lengths that the prior does not have."""
        z0, z1 = self.numbers(z0), self.numbers(z1)
        t = torch.linspace(0, 1, steps, device=z0.device).reshape(-1, *[1] * z0.ndim)
        cosine = torch.cosine_similarity(z0, z1, dim=-1).clamp(-1 + 1e-6, 1 - 1e-6).unsqueeze(-1)
        angle = cosine.acos()
        arc = ((1 - t) * angle).sin() / angle.sin() * z0 + (t * angle).sin() / angle.sin() * z1
        # Of (nearly) parallel vectors, as all are of one dimension, there is no one arc.
        path = torch.where(cosine.abs() < 1 - 1e-5, arc, (1 - t) * z0 + t * z1)
        return self.from_numbers(path)

    def gap(self, q: Distribution) -> tuple[Tensor, int]:
        """By the normal with the mixture's covariance; where there are not twice as many data as
        variables, correlations are left out."""
        inner, p = base(q), base(self.prior())
        means = ((inner.loc - p.loc).double() / p.scale).flatten(1)  # [N, L]
        variances = (inner.scale.double() / p.scale).square().flatten(1)
        data, size = means.shape
        if data < 2 * size:  # never a matrix of thousands of variables
            variance = means.var(0, correction=0) + variances.mean(0)
            trace, logdet, moments = variance.sum(), variance.log().sum(), size
        else:
            covariance = means.T.cov(correction=0).reshape(size, size) + variances.mean(0).diag()
            trace, logdet = covariance.trace(), covariance.logdet()
            moments = size * (size + 1) // 2
        second = trace + means.mean(0).square().sum() - size - logdet
        return second / 2, size + moments


def normal_log_densities(loc: Tensor, scale: Tensor, z: Tensor) -> Tensor:
    r"""The density of every z [\*, L] under each of K normals, whose parameters are [K, \*V] for L
    variables in all -> [\*, K].

    By :math:`(z - \mu)^2 = z^2 - 2 z \mu + \mu^2`, a product of matrices; in double precision, as z
    and mu may be many sigma from zero and near each other.
    """
    loc, scale = (p.flatten(1).to(precise(z)) for p in (loc, scale))  # [K, L]
    numbers, weight = z.to(loc), scale.square().reciprocal()
    linear = loc * weight
    constant = scale.log().sum(-1) + (loc * linear).sum(-1) / 2
    constant = constant + math.log(2 * math.pi) / 2 * scale.shape[-1]
    powers = torch.cat([numbers.square(), numbers], -1)
    matrix = torch.cat([weight / -2, linear], -1)
    return F.linear(powers, matrix, -constant).to(z)
