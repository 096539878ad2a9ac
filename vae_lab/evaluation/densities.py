r"""Points that posteriors draw, and the densities of all posteriors and of their mixture there.

Each log-density lacks a term h(z) that all of a family have in common.
"""

import math
from typing import NamedTuple

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from ..estimators.base import base

PAIRS = 2**20  # of points and posteriors at a time: 8 MB


class Densities(NamedTuple):
    """Log-densities at M points.

    Attributes:
        own: of the posterior that has drawn the point, each variable's, [M, L].
        prior: each variable's, [M, L].
        mixture: of the mean of all posteriors, [M].
        marginals: of each variable under that mean, [M, L]; not of bits and categories.
    """

    own: Tensor
    prior: Tensor
    mixture: Tensor
    marginals: Tensor | None


def normal(
    q: Distribution, prior: Distribution, rows: Tensor, drawing: Tensor, draws: int
) -> Densities:
    """Of normal q(z|x_n), batch shape [N'], at `draws` points of each that is `drawing`, from the
    mixture of those in `rows`.

    A point is kept as its posterior's mean and a step from there: a posterior may be narrower than
    the last digit of its mean.
    """
    means, scales = (x.cpu().double()[rows] for x in (base(q).loc, base(q).scale))
    owner = drawing.repeat(draws)
    mean, scale = means[owner], scales[owner]
    step = scale * torch.randn_like(scale)
    of_prior = (x.cpu().double() for x in (base(prior).loc, base(prior).scale))
    mixture, marginals = [], []
    size = max(PAIRS // len(means), 1)
    for at, by in zip(mean.split(size), step.split(size), strict=True):
        joint, each = mean.new_zeros(len(at), len(means)), []
        for i in range(means.shape[1]):
            log_q = _log_normal(at[:, i, None], by[:, i, None], means[:, i], scales[:, i])
            joint += log_q
            each.append(log_q.logsumexp(1))
        mixture.append(joint.logsumexp(1))
        marginals.append(torch.stack(each, 1))
    count = math.log(len(means))
    return Densities(
        _log_normal(mean, step, mean, scale),
        _log_normal(mean, step, *of_prior),
        torch.cat(mixture) - count,
        torch.cat(marginals) - count,
    )


def _log_normal(at: Tensor, by: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """At `at` + `by`, which is never added up: where `at` is the mean, `by` is all there is."""
    squares = (at - mean).add_(by).div_(scale).square_()
    return squares.mul_(-0.5).sub_(scale.log() + math.log(2 * math.pi) / 2)


def exponential(
    q: Distribution, prior: Distribution, rows: Tensor, drawing: Tensor, draws: int
) -> Densities:
    """As :func:`normal`, of bits, categories and counts.

    Their log q(z_l|x) is T(z_l) . eta_l(x) - A_l(x) + h(z_l), so that the densities of many z under
    many posteriors are one product of matrices.
    """
    z = q.sample((draws,)).cpu().double()[:, rows][:, drawing].flatten(0, 1)  # [M, *E]
    statistics = z if z.ndim > 2 else z.unsqueeze(-1)  # T, [M, L, P]
    eta, log_normaliser = (part[rows] for part in natural(q))
    eta_p, normaliser_p = natural(prior)
    owner = drawing.repeat(draws)
    marginals = None
    if isinstance(base(q), td.Poisson):
        variables = zip(statistics.unbind(1), eta.unbind(1), log_normaliser.unbind(1), strict=True)
        marginals = torch.stack([_log_mixture(*variable) for variable in variables], 1)
    return Densities(
        (statistics * eta[owner]).sum(-1) - log_normaliser[owner],
        (statistics * eta_p).sum(-1) - normaliser_p,
        _log_mixture(statistics.flatten(1), eta.flatten(1), log_normaliser.sum(1)),
        marginals,
    )


def natural(q: Distribution) -> tuple[Tensor, Tensor]:
    """eta [*B, L, P] and A [*B, L], of bits, categories and counts."""
    inner = base(q)
    if isinstance(inner, td.Poisson):
        rate = inner.rate.cpu().double()
        return rate.clamp_min(torch.finfo(rate.dtype).tiny).log().unsqueeze(-1), rate
    logits = inner.logits.cpu().double()
    if isinstance(inner, td.Bernoulli):
        return logits.unsqueeze(-1), F.softplus(logits)
    return logits, torch.zeros_like(logits[..., 0])  # of categories, already normalised


def log_codes(eta: Tensor, log_normaliser: Tensor) -> Tensor:
    """The log-probabilities of categories or bits, [L, K]."""
    return eta if eta.shape[-1] > 1 else torch.cat([0 * eta, eta], -1) - log_normaliser[:, None]


def _log_mixture(statistics: Tensor, eta: Tensor, log_normaliser: Tensor) -> Tensor:
    """log q(z) - h(z) at points T [M, P] of the mixture of eta [N, P] and A [N], [M]."""
    size = max(PAIRS // len(eta), 1)
    parts = [(t @ eta.T - log_normaliser).logsumexp(1) for t in statistics.split(size)]
    return torch.cat(parts) - math.log(len(eta))
