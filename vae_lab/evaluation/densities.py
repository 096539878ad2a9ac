r"""Points that posteriors draw, and the densities of all posteriors and of their mixture there.

Each log-density lacks a term h(z) that all of a family have in common.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from ..distributions import base, mapped, per_variable
from ..latents import Latent

PAIRS = 2**20  # of points and posteriors at a time: 8 MB
DRAWN = 2**25  # numbers of z at a time: 256 MB


class Densities(NamedTuple):
    """Log-densities at M points.

    Attributes:
        own: of the posterior that has drawn the point, each variable's, [M, L].
        prior: each variable's, [M, L].
        mixture: of the mean of all posteriors, [M].
        marginals: of each variable under that mean, [M, L]; None where its values can be listed.
    """

    own: Tensor
    prior: Tensor
    mixture: Tensor
    marginals: Tensor | None


def densities(
    latent: Latent, q: Distribution, rows: Tensor, drawing: Tensor, draws: int
) -> Densities:
    """Draws points from posteriors q(z|x_n) and returns the log-densities at them.

    Args:
        latent: the family of q.
        q: the posteriors, batch shape [N'].
        rows: numbers of the posteriors of which the mixture is made.
        drawing: places in `rows` of those from which points are drawn.
        draws: points from each.
    """
    prior = latent.prior()
    if isinstance(base(q), Normal):
        return _normal(q, prior, rows, drawing, draws)
    if isinstance(base(q), MultivariateNormal):
        return _correlated(q, prior, rows, drawing, draws)
    natural, natural_prior = latent.natural(q), latent.natural(prior)
    listed = latent.categories is not None

    def some(draws: int) -> Densities:
        z = q.sample((draws,)).cpu().double()[:, rows][:, drawing].flatten(0, 1)  # [M, *E]
        owner = drawing.repeat(draws)
        if natural is None or natural_prior is None:
            return _any_family(q, prior, rows, z, owner)
        eta, log_normaliser = (part[rows] for part in natural)
        return _exponential(
            latent.statistics(z), owner, (eta, log_normaliser), natural_prior, listed
        )

    most = max(DRAWN // (q.batch_shape[0] * latent.size), 1)
    parts = [some(min(most, draws - start)) for start in range(0, draws, most)]
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: list[Densities]) -> Densities:
    own, prior, mixture, marginals = zip(*parts, strict=True)
    known = None if marginals[0] is None else torch.cat(marginals)
    return Densities(torch.cat(own), torch.cat(prior), torch.cat(mixture), known)


def _normal(
    q: Distribution, prior: Distribution, rows: Tensor, drawing: Tensor, draws: int
) -> Densities:
    """A point is kept as its posterior's mean and a step from there, as a posterior may be narrower
    than the last digit of its mean."""
    means, scales = (x[rows] for x in _location_scale(q))
    owner = drawing.repeat(draws)
    mean, scale = means[owner], scales[owner]
    step = scale * torch.randn_like(scale)
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
        _log_normal(mean, step, *_location_scale(prior)),
        torch.cat(mixture) - count,
        torch.cat(marginals) - count,
    )


def _correlated(
    q: Distribution, prior: Distribution, rows: Tensor, drawing: Tensor, draws: int
) -> Densities:
    """A density is the product of those of each variable given the ones before it, which
    :math:`L^{-1} (z - m)` holds apart, for a covariance L L^T: at a place of a grid, or of all."""
    parts = base(q).loc, base(q).scale_tril
    mean, root = (x.cpu().double()[rows] for x in parts)
    size = mean.shape[-1]
    mean, root = mean.view(len(rows), -1, size), root.view(len(rows), -1, size, size)
    inverse = torch.linalg.inv(root)
    shift = (inverse @ mean.unsqueeze(-1)).squeeze(-1)
    log_scale = root.diagonal(dim1=-2, dim2=-1).log()
    constant = math.log(2 * math.pi) / 2
    owner = drawing.repeat(draws)
    noise = torch.randn_like(mean[owner])
    z = mean[owner] + (root[owner] @ noise.unsqueeze(-1)).squeeze(-1)  # [M, places, D]
    joint = z.new_zeros(len(z), len(rows))
    some = max(PAIRS // (len(rows) * size), 1)
    for place in range(z.shape[1]):
        of_all = inverse[:, place].flatten(0, 1)  # [N * D, D]
        for log_q, at in zip(joint.split(some), z[:, place].split(some), strict=True):
            white = (at @ of_all.T).unflatten(1, (len(rows), -1)).sub_(shift[:, place])
            log_q -= white.square_().sum(-1) / 2 + (log_scale[:, place] + constant).sum(-1)
    means, scales = mean.flatten(1), root.square().sum(-1).sqrt().flatten(1)
    points, origin = z.flatten(1), z.new_zeros(())
    pairs = zip(points.unbind(1), means.unbind(1), scales.unbind(1), strict=True)
    each = [_log_normal(at[:, None], origin, *of_all).logsumexp(1) for at, *of_all in pairs]
    count = math.log(len(rows))
    return Densities(
        (-noise.square() / 2 - log_scale[owner] - constant).flatten(1),
        _log_normal(points, origin, *_location_scale(prior)),
        joint.logsumexp(1) - count,
        torch.stack(each, 1) - count,
    )


def _log_normal(at: Tensor, by: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """At `at` + `by`, which is never added up: where `at` is the mean, `by` is all there is."""
    squares = (at - mean).add_(by).div_(scale).square_()
    return squares.mul_(-0.5).sub_(scale.log() + math.log(2 * math.pi) / 2)


def _location_scale(q: Distribution) -> tuple[Tensor, Tensor]:
    """Means and scales of normals, [*B, L] each."""
    loc, scale = (per_variable(x.cpu().double(), q) for x in (base(q).loc, base(q).scale))
    return loc, scale


def _exponential(
    statistics: Tensor,
    owner: Tensor,
    posteriors: tuple[Tensor, Tensor],
    prior: tuple[Tensor, Tensor],
    listed: bool,
) -> Densities:
    """log q(z_l|x) is T(z_l) . eta_l(x) - A_l(x) + h(z_l), so that the densities of many z under
    many posteriors are one product of matrices; see :meth:`.Latent.natural`."""
    (eta, log_normaliser), (eta_p, normaliser_p) = posteriors, prior
    marginals = None
    if not listed:
        variables = zip(statistics.unbind(1), eta.unbind(1), log_normaliser.unbind(1), strict=True)
        marginals = torch.stack([_log_mixture(*variable) for variable in variables], 1)
    return Densities(
        (statistics * eta[owner]).sum(-1) - log_normaliser[owner],
        (statistics * eta_p).sum(-1) - normaliser_p,
        _log_mixture(statistics.flatten(1), eta.flatten(1), log_normaliser.sum(1)),
        marginals,
    )


def _any_family(
    q: Distribution, prior: Distribution, rows: Tensor, z: Tensor, owner: Tensor
) -> Densities:
    """One density for each pair of a point and a posterior, of each variable."""
    q = mapped(q, lambda parameter: parameter.cpu().double()[rows])
    own = mapped(q, lambda parameter: parameter[owner])
    prior = mapped(prior, lambda parameter: parameter.cpu().double())
    size = max(PAIRS // (len(rows) * q.event_shape.numel()), 1)
    mixture, marginals = [], []
    for part in z.split(size):
        log_q = base(q).log_prob(part.unsqueeze(1)).flatten(2)  # [M, N, L]
        mixture.append(log_q.sum(2).logsumexp(1))
        marginals.append(log_q.logsumexp(1))
    count = math.log(len(rows))
    return Densities(
        base(own).log_prob(z).flatten(1),
        base(prior).log_prob(z).flatten(1),
        torch.cat(mixture) - count,
        torch.cat(marginals) - count,
    )


def _log_mixture(statistics: Tensor, eta: Tensor, log_normaliser: Tensor) -> Tensor:
    """log q(z) - h(z) at points T [M, P] of the mixture of eta [N, P] and A [N], [M]."""
    size = max(PAIRS // len(eta), 1)
    parts = [(t @ eta.T - log_normaliser).logsumexp(1) for t in statistics.split(size)]
    return torch.cat(parts) - math.log(len(eta))
