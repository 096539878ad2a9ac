"""Derivatives of the measure itself: a difference of f under two other distributions."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, Poisson

from ..aggregates import Aggregate, credit
from ..distributions import base, per_dimension
from .base import Estimator, Integrand, positive_samples, surrogate

Move = tuple[Tensor, Tensor, Tensor]  # parameter, coefficient, where each coordinate goes


class MeasureValued(Estimator):
    r"""The weak derivative: each coordinate in turn is redrawn from a pair of other distributions.

    .. math:: \partial_\mu \mathbb{E}[f] = \frac{\mathbb{E}[f(\mu + \sigma W) - f(\mu - \sigma W)]}
              {\sigma \sqrt{2 \pi}}, \quad
              \partial_\sigma \mathbb{E}[f] = \frac{\mathbb{E}[f(\mu + \sigma M) - f(z)]}{\sigma}

    for Normal, with W Rayleigh and M double-sided Maxwell; and for Poisson :math:`\partial_\lambda
    \mathbb{E}[f] = \mathbb{E}[f(z + 1) - f(z)]`. M is drawn given the sample's own :math:`\epsilon
    = (z - \mu) / \sigma` as :math:`M^2 = \epsilon^2 + 2 E`, E exponential, with the sign of
    epsilon: the usual coupling (epsilon is uniform between 0 and M) read backwards, so that the
    sample itself serves as the other half of the pair.

    **Forward** a sample of q. **Backward** the differences; nothing is asked of f but its values,
    and a jump in f is seen. **Bias** none. **Cost** per sample one evaluation and, for each of the
    D coordinates, three (Normal) or one (Poisson).

    The chance that a Gaussian number is positive is the mean of a step function, whose derivative
    is zero. The gradient is right all the same, here without any variance:

    >>> mean = torch.zeros(10_000, 1, requires_grad=True)

    >>> for estimator in ScoreFunction(2), MeasureValued():
    ...     value = estimator(Independent(Normal(mean, 1.0), 1), lambda z: (z > 0).float().sum(-1))
    ...     (g,) = torch.autograd.grad(value.sum(), mean)
    ...     print(f"{g.mean():.1f} +- {g.std():.1f}")
    0.4 +- 0.5
    0.4 +- 0.0

    Source: Rosca, Figurnov, Mohamed & Mnih, *Measure-Valued Derivatives for Approximate Bayesian
    Inference*, 2019; Mohamed, Rosca, Figurnov & Mnih, *Monte Carlo Gradient Estimation in Machine
    Learning*, JMLR 2020, arXiv:1906.10652
    """

    unbiased = True
    families = (Normal, Poisson)
    evaluations = "num_samples (1 + 3 D), Poisson num_samples (1 + D)"
    source = "Rosca et al. 2019"

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        z = q.sample((self.num_samples,))
        inner = base(q)
        moves = normal_moves(inner, z) if isinstance(inner, Normal) else poisson_moves(inner, z)
        moved = torch.stack([_one_at_a_time(goal, z, q) for _, _, goal in moves])  # [M, D, S, ..]
        values = f(torch.cat([z, moved.flatten(0, 2)]))
        at_z, elsewhere = values.split([len(z), len(values) - len(z)])
        elsewhere = elsewhere.detach().unflatten(0, moved.shape[:3])
        elsewhere = elsewhere.movedim((0, 1), (-2, -1))  # [S, *B, M, D]
        here = at_z.detach()[..., None, None].expand_as(elsewhere)
        gain = -credit(here, elsewhere, aggregate)
        slopes = [per_dimension(weight * p, q) for p, weight, _ in moves]  # each [*B, D]
        slope = (gain * torch.stack(slopes, -2)).sum((0, -2, -1))
        return aggregate(at_z) + surrogate(slope)


def normal_moves(q: Normal, z: Tensor) -> list[Move]:
    mean, scale = q.loc.detach(), q.scale.detach()
    rayleigh = (2 * torch.empty_like(z).exponential_()).sqrt()
    epsilon = (z - mean) / scale
    maxwell = (epsilon.square() + 2 * torch.empty_like(z).exponential_()).sqrt()
    weight = 1 / (scale * math.sqrt(2 * math.pi))
    return [
        (q.loc, weight, mean + scale * rayleigh),
        (q.loc, -weight, mean - scale * rayleigh),
        (q.scale, 1 / scale, mean + scale * maxwell.copysign(epsilon)),
    ]


def poisson_moves(q: Poisson, z: Tensor) -> list[Move]:
    return [(q.rate, torch.ones_like(q.rate), z + 1)]


def _one_at_a_time(goal: Tensor, z: Tensor, q: Distribution) -> Tensor:
    """D copies of z, in the d-th of which coordinate d is the goal's, [D, S, *B, *E]."""
    size = q.event_shape.numel()
    chosen = torch.eye(size, dtype=torch.bool, device=z.device)
    chosen = chosen.reshape(size, *[1] * (z.ndim - len(q.event_shape)), *q.event_shape)
    return torch.where(chosen, goal, z)
