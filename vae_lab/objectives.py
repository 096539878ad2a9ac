"""What is maximised: bounds on log p(x), one per datum, in nats."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .aggregates import Aggregate, log_mean_exp, mean
from .estimators import Estimator
from .inputs import Array
from .schedules import Schedule, as_schedule, bounds

if TYPE_CHECKING:
    from .vae import VAE


class Terms(NamedTuple):
    """An objective and what it is made of, each [B] and in nats."""

    objective: Tensor  # what is maximised
    elbo: Tensor  # reconstruction - kl, so beta = 1; at the estimator's points, relaxed or not
    reconstruction: Tensor  # E_q log p(x|z)
    kl: Tensor  # KL(q(z|x) || p(z)) in closed form


class Objective(nn.Module):
    """x [B, *X] -> terms [B], differentiable with the estimator's gradient.

    The first data are looked at: values outside the likelihood's range are refused.
    """

    def __call__(self, vae: "VAE", estimator: Estimator, x: Array) -> Terms:
        # Here and not in forward, which may be compiled: `objective.compile()`.
        return super().__call__(vae, estimator, vae.images(x, first_only=True))

    def forward(self, vae: "VAE", estimator: Estimator, x: Tensor) -> Terms:
        raise NotImplementedError


class ELBO(Objective):
    r"""The evidence lower bound, with a weight on its KL.

    .. math:: \mathcal{L}(x) = \mathbb{E}_{q(z|x)}[\log p(x|z)]
              - \beta \sum_l \max(\mathrm{KL}_l, \lambda)

    Sums over a datum's values and latents, so beta = 1 and lambda = 0 *is* the ELBO. Free bits
    apply to each datum on its own: its loss does not depend on the batch that it came in.

    Args:
        beta: a number or a schedule (KL warm-up), not negative.
        free_bits: lambda, in nats for each latent variable; below it the KL has no gradient.

    Source: Kingma & Welling 2014, arXiv:1312.6114; beta: Higgins et al. 2017; free bits: Kingma
    et al. 2016, arXiv:1606.04934
    """

    def __init__(self, beta: float | Schedule = 1.0, free_bits: float = 0.0) -> None:
        super().__init__()
        if free_bits < 0:
            raise ValueError(f"free_bits must not be negative, got {free_bits:g}")
        self.beta = _not_negative(beta)
        self.free_bits = free_bits

    def forward(self, vae: "VAE", estimator: Estimator, x: Tensor) -> Terms:
        features = vae.features(x)
        q = vae.posterior(features)
        reconstruction = estimator(q, lambda z: vae.log_px_z(x, z), context=features)
        each_kl = vae.latent.kl(q)  # [B, L]
        kl = each_kl.sum(-1)
        penalty = each_kl.clamp_min(self.free_bits).sum(-1) if self.free_bits else kl
        objective = reconstruction - self.beta.value * penalty
        return Terms(objective, reconstruction - kl, reconstruction, kl)


class _LogWeights(Objective):
    """Aggregates log p(x|z_s) + beta (log p(z_s) - log q(z_s|x)) over the samples."""

    aggregate: Aggregate

    def __init__(self, beta: float | Schedule = 1.0) -> None:
        super().__init__()
        self.beta = _not_negative(beta)

    def forward(self, vae: "VAE", estimator: Estimator, x: Tensor) -> Terms:
        features = vae.features(x)
        q = vae.posterior(features)
        density, prior = estimator.density(q), vae.latent.prior()
        points: list[tuple[Tensor, Tensor]] = []

        def log_weight(z: Tensor) -> Tensor:
            log_px_z = vae.log_px_z(x, z)  # [S, B]
            points.append((z.detach(), log_px_z.detach()))
            return log_px_z + self.beta.value * (prior.log_prob(z) - density.log_prob(z))

        objective = estimator(q, log_weight, aggregate=type(self).aggregate, context=features)
        kl = vae.latent.kl(q).sum(-1)
        z, log_px_z = (torch.cat(chunks) for chunks in zip(*points, strict=True))
        sampled = estimator.sample_mean(q, z, log_px_z)
        reconstruction = self.reconstruction(objective, sampled, kl).detach()
        return Terms(objective, reconstruction - kl, reconstruction, kl)

    def reconstruction(self, objective: Tensor, sampled: Tensor, kl: Tensor) -> Tensor:
        """E_q log p(x|z), here as the mean over samples; all [B]."""
        return sampled


class MonteCarloELBO(_LogWeights):
    r"""The ELBO with its KL sampled.

    .. math:: \mathcal{L}(x) = \mathbb{E}_q[\log p(x|z) + \beta (\log p(z) - \log q(z|x))]

    For estimators that gain from seeing log q(z|x) inside the expectation.

    Args:
        beta: a number or a schedule (KL warm-up), not negative.
    """

    aggregate = staticmethod(mean)

    def reconstruction(self, objective: Tensor, sampled: Tensor, kl: Tensor) -> Tensor:
        """The objective without its KL: not every estimator's points are equally likely."""
        return objective + self.beta.value * kl


class IWAE(_LogWeights):
    r"""The multi-sample bound; S is the estimator's `num_samples`.

    .. math:: \mathcal{L}_S(x) = \mathbb{E}_{z_{1:S} \sim q(z|x)} \Big[
              \log \tfrac{1}{S} \textstyle\sum_s p(x, z_s) / q(z_s | x) \Big]

    Equals the ELBO for S = 1 and does not decrease in S. With a reparameterised estimator this is
    IWAE, with the leave-one-out score function VIMCO. Relaxed samples give log-weights that
    interpolate those of one-hot samples linearly, so no bound until their temperature is low.

    Source: Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, ICLR 2016,
    arXiv:1509.00519
    """

    aggregate = staticmethod(log_mean_exp)

    def __init__(self) -> None:
        super().__init__()  # no beta: with another weight than 1 the log-weights bound nothing


def _not_negative(beta: float | Schedule) -> Schedule:
    schedule = as_schedule(beta)
    least, _ = bounds(schedule)
    if not least >= 0:
        raise ValueError(f"beta must not be negative, got {least:g}")
    return schedule
