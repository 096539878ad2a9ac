"""Bits drawn in opposition to each other: what differs between them is what a gradient needs."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from ..aggregates import Aggregate, credit, difference
from ..distributions import base, full_precision
from .base import Estimator, Integrand, positive_samples, surrogate
from .control import each_event, event_sum


class _Pairs(Estimator):
    r"""Pairs of bits, :math:`b = 1[u > 1 - p]` and :math:`\tilde b = 1[u < p]`.

    Each half of the pairs is a set of S independent samples. Sample s is credited with what the
    aggregate A would lose if its partner stood in its place; each half is credited in turn.
    """

    unbiased = True
    families = (Bernoulli,)
    evaluations = "2 num_samples"

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        parameter = base(q).logits
        logits = full_precision(parameter.detach())
        u = torch.rand((self.num_samples, *logits.shape), dtype=logits.dtype, device=logits.device)
        b, partner = (u > (-logits).sigmoid()).to(parameter), (u < logits.sigmoid()).to(parameter)
        values = f(torch.cat([b, partner]))
        first, second = values.unflatten(0, (2, self.num_samples))  # [S, *B]
        one, other = first.detach(), second.detach()
        gain = 0.5 * (credit(one, other, aggregate) - credit(other, one, aggregate))
        weight = self.weight(u, b - partner, logits)  # [S, *B, *E]
        gradient = (each_event(gain, q) * weight).sum(0)
        value = 0.5 * (aggregate(first) + aggregate(second))
        return value + surrogate(event_sum(gradient * parameter, q))

    def weight(self, u: Tensor, difference: Tensor, logits: Tensor) -> Tensor:
        """The factor of each credit in the gradient, from u, b - b~ and the logits, [S, *B, *E]."""
        raise NotImplementedError


class ARM(_Pairs):
    r"""Augment-REINFORCE-merge: the score of the uniform noise, merged with that of its reflection.

    .. math:: \nabla_{\ell} = \big(f(1[u > 1 - p]) - f(1[u < p])\big) (u - \tfrac12),
              \quad u \sim \mathcal{U}(0, 1)^D

    In a multi-sample bound f(b) - f(b~) becomes A(f_{1:S}) - A(.., f~_s, ..), summed over s.

    **Forward** both bits of each pair. **Backward** as above; f's own parameters as usual. **Bias**
    none. **Cost** two evaluations for each of the `num_samples` pairs.

    Args:
        num_samples: S, the number of pairs.

    ARM uses only the values of f, so f may be a step function:

    >>> logits = torch.ones(100_000, 3, requires_grad=True)

    >>> value = ARM()(Independent(Bernoulli(logits=logits), 1), lambda b: (b.sum(-1) > 1).float())

    >>> value.sum().backward()

    >>> print(f"{value.mean():.2f}, {logits.grad.mean():.2f}")  # exact: 0.822 and 0.077
    0.82, 0.08

    Source: Yin & Zhou, *ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks*, ICLR
    2019, arXiv:1807.11143
    """

    source = "Yin & Zhou 2019"

    def weight(self, u: Tensor, difference: Tensor, logits: Tensor) -> Tensor:
        return u - 0.5


class DisARM(_Pairs):
    r"""ARM with its noise integrated out given the pair, also known as U2G.

    .. math:: \nabla_{\ell} = \tfrac12 \big(f(b) - f(\tilde b)\big) (b - \tilde b) \, \sigma(|\ell|)
              = \mathbb{E}[\text{ARM} \mid b, \tilde b]

    Hence never of more variance than ARM. In a multi-sample bound f(b) - f(b~) becomes
    A(f_{1:S}) - A(.., f~_s, ..), summed over s: local DisARM.

    **Forward** both bits of each pair. **Backward** as above; f's own parameters as usual. **Bias**
    none. **Cost** two evaluations for each of the `num_samples` pairs.

    Args:
        num_samples: S, the number of pairs.

    ARM and DisARM both evaluate f twice; DisARM's gradients vary less:

    >>> logits = torch.full((10_000, 3), 2.0, requires_grad=True)

    >>> for estimator in ARM(), DisARM():
    ...     value = estimator(Independent(Bernoulli(logits=logits), 1), lambda b: b.prod(-1))
    ...     (g,) = torch.autograd.grad(value.sum(), logits)
    ...     print(f"{g.mean():.2f} +- {g.std():.2f}")
    0.08 +- 0.21
    0.08 +- 0.17

    Source: Dong, Mnih & Tucker, *DisARM: An Antithetic Gradient Estimator for Binary Latent
    Variables*, NeurIPS 2020, arXiv:2006.10680; Yin, Ho, Yan, Qian & Zhou, *Probabilistic Best
    Subset Selection via Gradient-Based Optimization*, 2020, arXiv:2006.06448
    """

    source = "Dong et al. 2020; Yin et al. 2020"

    def weight(self, u: Tensor, difference: Tensor, logits: Tensor) -> Tensor:
        return 0.5 * difference * logits.abs().sigmoid()


class ARMS(Estimator):
    r"""S bits that exclude each other as far as their probabilities allow.

    .. math:: \nabla_{\ell} = \frac{p (1 - p)}{p - \rho} \,
              \frac{1}{S - 1} \sum_s (f_s - \bar f) \, b_s, \qquad \rho = P(b_s = b_t = 1)

    The bits are thresholds of uniforms that a Dirichlet couples. Two samples are DisARM's pair.

    **Forward** S samples, each of them exact. **Backward** as above; f's own parameters as usual.
    **Bias** none. **Cost** `num_samples` evaluations. A multi-sample bound needs independent
    samples, so only the mean.

    Args:
        num_samples: S, at least two.

    Its gradient varies less than that of four independent samples with leave-one-out:

    >>> logits = torch.full((10_000, 3), -0.8, requires_grad=True)

    >>> for estimator in ScoreFunction(4), ARMS(4):
    ...     value = estimator(Independent(Bernoulli(logits=logits), 1), lambda b: b.amax(-1))
    ...     (g,) = torch.autograd.grad(value.sum(), logits)
    ...     print(f"{g.mean():.2f} +- {g.std():.2f}")
    0.10 +- 0.10
    0.10 +- 0.06

    Source: Dimitriev & Zhou, *ARMS: Antithetic-REINFORCE-Multi-Sample Gradient for Binary
    Variables*, ICML 2021, arXiv:2105.14141
    """

    unbiased = True
    families = (Bernoulli,)
    multi_sample = False
    source = "Dimitriev & Zhou 2021"

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples, 2)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        parameter = base(q).logits
        logits = full_precision(parameter.detach())
        log_rare = F.logsigmoid(-logits.abs())  # of the rarer value of each bit
        rare = exclusive_bits(log_rare, self.num_samples)
        b = torch.where(logits < 0, rare, ~rare).to(parameter)
        values = f(b)  # [S, *B]
        covariance = (each_event(_centred(values), q) * b).sum(0) / (self.num_samples - 1)
        gradient = correction(log_rare, self.num_samples) * covariance
        return aggregate(values) + surrogate(event_sum(gradient * parameter, q))


def exclusive_bits(log_p: Tensor, num_samples: int) -> Tensor:
    r"""S events of probability p <= 1/2 that occur together as seldom as possible, [S, *p].

    :math:`U_s = (1 - d_s)^{S - 1}` with d uniform on the simplex is uniform, and
    :math:`P(U_s < p, U_t < p) = (2 p^{1 / (S - 1)} - 1)_+^{S - 1}`.
    """
    noise = log_p.new_empty((num_samples, *log_p.shape)).exponential_()
    total = noise.sum(0)
    return (total - noise) / total < (log_p / (num_samples - 1)).exp()


def coincidence(log_p: Tensor, num_samples: int) -> Tensor:
    r"""P(both | one) of two such events, :math:`(2 - p^{-1 / (S - 1)})_+^{S - 1}`."""
    return (2 - (-log_p / (num_samples - 1)).exp()).clamp_min(0) ** (num_samples - 1)


def correction(log_p: Tensor, num_samples: int) -> Tensor:
    r"""The factor by which independent events would differ more, :math:`p (1 - p) / (p - \rho)`."""
    return -log_p.expm1() / (1 - coincidence(log_p, num_samples))


def _centred(values: Tensor) -> Tensor:
    values = values.detach()
    return difference(values, values.mean(0))
