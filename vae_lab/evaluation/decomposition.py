r"""Splits the KL of a VAE into its parts, and measures how much of the latent is in use.

With the aggregate posterior of the N images of a split, :math:`q(z) = \frac{1}{N} \sum_n q(z|x_n)`,

.. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z|x_n) \,\|\, p(z)) =
          \underbrace{I(x; z)}_{\text{mutual information}}
          + \underbrace{\mathrm{KL}\big(q(z) \,\|\, \textstyle\prod_l q(z_l)\big)}
            _{\text{total correlation}}
          + \underbrace{\textstyle\sum_l \mathrm{KL}(q(z_l) \,\|\, p(z_l))}_{\text{marginal KL}}

The first two do not depend on the prior, so that they are measured with the latent's own for every
other one as well. Of a prior that is no product over the variables there are no marginals, and what
the mutual information leaves is :math:`\mathrm{KL}(q(z) \,\|\, p(z))` as a whole.

Sources: Hoffman & Johnson, *ELBO surgery*, NeurIPS workshop 2016; Chen et al., *Isolating Sources
of Disentanglement in VAEs*, NeurIPS 2018, arXiv:1802.04942
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import base, per_variable
from ..latents import Latent
from .densities import densities

POINTS = 2500  # at which q(z) is evaluated, at least
MIXTURE = 10_000  # posteriors that q(z) is made of


class Decomposition(NamedTuple):
    """The three parts of the mean KL, which they add up to, in nats.

    Attributes:
        kl: its closed form, the mean over the images.
        mutual_information: of images and latents; at most log N.
        total_correlation: of the latent variables under q(z); an estimate may lie below 0.
        marginal_kl: of each variable's q(z_l) to its prior, [L].
        mutual_information_error: the standard error that the choice of the points leaves,
        total_correlation_error: likewise,
        marginal_kl_error: and of the sum of the marginals.
        images: N, of which q(z) is made.
        points: z at which it was evaluated.
    """

    kl: float
    mutual_information: float
    total_correlation: float
    marginal_kl: Tensor
    mutual_information_error: float
    total_correlation_error: float
    marginal_kl_error: float
    images: int
    points: int


class Aggregate(NamedTuple):
    """KL(q(z) || p(z)) to any prior, in nats.

    Attributes:
        kl: what the mutual information leaves of the mean KL.
        error: the standard error that the draws leave.
    """

    kl: float
    error: float


class CodeUse(NamedTuple):
    """The use that discrete latents make of their categories over a split.

    Attributes:
        used: the share of all codes that are the most probable one for at least one image.
        perplexity: :math:`\\exp H(\\bar\\pi_l)` of the mean probabilities, [L]: 1 where one code
            is used, K where all are alike.
    """

    used: float
    perplexity: Tensor


def evenly(total: int, most: int) -> Tensor:
    """Row numbers at even distances, all of them if they are not more than `most`."""
    return torch.arange(min(total, most)) * total // min(total, most)


@torch.no_grad()
def decompose(
    latent: Latent, q: Distribution, points: int = POINTS, mixture: int = MIXTURE
) -> Decomposition:
    r"""Splits the mean KL of the posteriors q(z|x_n), batch shape [N], to the latent's own prior.

    :math:`I(x; z) = \mathbb{E}[\log q(z|x) - \log q(z)]` is a mean over points z that every
    posterior has drawn alike, with its own part in the mixture q(z): unbiased for these N images,
    and for the distribution that they come from a lower bound of at most log N. The marginal KL is
    a sum for categories and bits, and such a mean for Gaussians and counts. The total correlation
    is what they leave of the KL.

    Args:
        points: of z, at least. Every image draws as many, at least two; of more images than
            points, so many draw two, at even distances.
        mixture: the most images that q(z) is made of; of more, so many are taken at even distances.
    """
    rows = evenly(q.batch_shape[0], mixture)
    images, kl = len(rows), per_variable(latent.kl(q), q).cpu().double()[rows]
    drawing = evenly(images, points)
    draws = max(math.ceil(points / len(drawing)), 2)
    owner = drawing.repeat(draws)
    log_qz_x, log_pz, log_qz, log_marginals = densities(latent, q, rows, drawing, draws)
    values = (log_qz_x.sum(1) - log_qz).unsqueeze(1)
    codes, log_prior = latent.codes(q), latent.log_codes(latent.prior())
    if codes is not None and log_prior is not None:
        usage = codes.cpu().double()[rows].mean(0)  # [L, K]
        marginal = (usage.xlogy(usage) - usage * log_prior).sum(-1)
    if log_marginals is not None:
        values = torch.cat([values, log_marginals - log_pz], 1)
    # The means of these are known to be zero: over the draws of an image, and over the images,
    # where it is not zero anyway as all of them have drawn.
    controls = [log_qz_x - log_pz - kl[owner]]
    if len(drawing) < images:
        controls.append((kl - kl.mean(0))[owner])
    if latent.num_places > 1:  # thousands of variables, and no more points: one for each channel
        controls = [each.unflatten(1, (latent.num_places, -1)).sum(1) for each in controls]
    found, wider = _without(torch.cat(controls, 1), values)  # [SM, 1 or 1 + L]
    if log_marginals is not None:
        marginal = found[:, 1:].mean(0)
    mean_kl, mutual = kl.sum(1).mean().item(), found[:, 0].mean().item()
    return Decomposition(
        mean_kl,
        mutual,
        mean_kl - mutual - marginal.sum().item(),
        marginal,
        wider * _standard_error(found[:, 0].view(draws, -1), images),
        wider * _standard_error(found.sum(1).view(draws, -1), images),
        wider * _standard_error(found[:, 1:].sum(1).view(draws, -1), images),
        images,
        len(owner),
    )


def aggregate(kl: Tensor, found: Decomposition) -> Aggregate:
    """The KL of the aggregate posterior to the prior that the posteriors' KL was sampled to.

    Args:
        kl: of each image, [S, N], from S independent draws.
        found: the decomposition of the same posteriors to the latent's own prior.
    """
    kl = kl.cpu().double()[:, evenly(kl.shape[1], found.images)]
    error = (kl.var(0).mean() / kl.numel()).sqrt().item()
    rest = kl.mean().item() - found.mutual_information
    return Aggregate(rest, math.hypot(error, found.mutual_information_error))


@torch.no_grad()
def activity(*posteriors: Distribution) -> Tensor:
    """The variance over the images of the posterior's mean, [L]; a unit is active above 0.01.

    Of a one-hot variable it is the sum over its categories.

    Args:
        posteriors: of the images, in batches.

    Source: Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, ICLR 2016,
    arXiv:1509.00519
    """
    means = torch.cat([q.mean for q in posteriors])
    variance = means.double().var(0, correction=0)
    inner = base(posteriors[0])
    of_one = getattr(inner, "variable_shape", inner.event_shape)
    return variance.reshape(-1, of_one.numel()).sum(-1)


def code_use(codes: Tensor) -> CodeUse:
    """The use of the categories, given their probabilities [N, L, K] for N images."""
    _, variables, categories = codes.shape
    seen = torch.zeros(variables, categories, dtype=torch.bool, device=codes.device)
    seen.scatter_(1, codes.argmax(-1).T, True)
    perplexity = torch.special.entr(codes.double().mean(0)).sum(-1).exp()
    return CodeUse(seen.double().mean().item(), perplexity)


@torch.no_grad()
def prior_gap(latent: Latent, q: Distribution) -> float | None:
    r"""A lower bound on :math:`\mathrm{KL}(q(z) \,\|\, p(z))`, in nats, from few images.

    Of all distributions with the moments of q(z) the one in the prior's exponential family (a
    normal with any covariance, independent codes or counts) is the nearest to the prior. The KL
    of that one it is, less what so many draws of the prior itself would show. Where there are not
    twice as many images as Gaussian variables, correlations are left out. None where the latent
    does not know its nearest distribution.
    """
    if (found := latent.gap(q)) is None:
        return None
    gap, moments = found
    return max(gap.item() - moments / (2 * q.batch_shape[0]), 0.0)


def _without(controls: Tensor, values: Tensor) -> tuple[Tensor, float]:
    """Values [M, V] without what they share with controls [M, C] of mean zero (control variates).

    All have the same controls, so that sums of the values are left with what sums would be. More
    controls than M / 2 are left alone: they would explain noise. So are infinite ones.

    Returns:
        The values, and the factor by which the standard error of their mean is wider than they
        look: R shares that are fitted leave 1 - R / M of the noise, and have an error of their own.
    """
    points, size = controls.shape
    if 2 * size > points or not controls.isfinite().all():
        return values, 1.0
    # The one driver that allows controls that are zero throughout, or say the same.
    fit = torch.linalg.lstsq(controls - controls.mean(0), values, driver="gelsd")
    return values - controls @ fit.solution, points / (points - int(fit.rank))


def _standard_error(values: Tensor, images: int) -> float:
    """Standard error of the mean of [S, M] values: S draws for each of M of the images.

    If all images are among the M, the differences between them are no error. Cochran, *Sampling
    Techniques*, 1977, section 10.4.
    """
    draws, drawing = values.shape
    within = values.var(0).mean() / draws / drawing
    between = values.mean(0).var(correction=0) / max(drawing - 1, 1)
    share = drawing / images
    return (share * within + (1 - share) * between).sqrt().item()
