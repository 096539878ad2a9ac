"""Samples of categorical variables that are made from shared noise."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from ..aggregates import Aggregate, difference
from ..distributions import base, full_precision, one_hot, softmax
from .antithetic import coincidence, correction, exclusive_bits
from .base import Estimator, Integrand, positive_samples, surrogate
from .control import event_sum
from .relaxations import gumbel


class ARSM(Estimator):
    r"""Augment-REINFORCE-swap-merge: ARM for categories, with swaps in the place of reflections.

    .. math:: \nabla_{\ell_c} = \sum_j \Big(F_{cj} - \tfrac1K \sum_m F_{mj}\Big)
              \big(\tfrac1K - \varpi_j\big), \quad
              F_{mj} = f\big(\arg\min_i (\log \varpi_i^{m \leftrightarrow j} - \ell_i)\big)

    where :math:`\varpi \sim \text{Dirichlet}(1_K)` for each variable, and m and j trade places in
    all of them at once.

    **Forward** the sample of every swap, each of them exact. **Backward** as above; f's own
    parameters as usual. **Bias** none. **Cost** K(K - 1)/2 + 1 evaluations for K categories,
    however many variables.

    With K = 3 categories f sees 3 * 2 / 2 + 1 = 4 points for each estimate:

    >>> logits = torch.zeros(20_000, 2, 3, requires_grad=True)

    >>> def f(z):
    ...     print(f"{len(z)} points")
    ...     return z[..., 0].sum(-1)

    >>> ARSM()(Independent(OneHotCategorical(logits=logits), 1), f).sum().backward()
    4 points

    >>> print([f"{g:.2f}" for g in logits.grad.mean((0, 1))])  # exact: 2/9 and -1/9 twice
    ['0.22', '-0.11', '-0.11']

    Source: Yin, Yue & Zhou, *ARSM: Augment-REINFORCE-Swap-Merge Estimator for Gradient
    Backpropagation Through Categorical Variables*, ICML 2019, arXiv:1905.01413
    """

    unbiased = True
    families = (OneHotCategorical,)
    multi_sample = False
    evaluations = "K(K - 1)/2 + 1"
    source = "Yin et al. 2019"

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        parameter = base(q).logits
        logits = full_precision(parameter.detach())
        categories = logits.shape[-1]
        orders, which = _swaps(categories, logits.device)
        noise = gumbel(logits.shape, logits)  # -log of what makes the Dirichlet, up to a constant
        winner = (logits.unsqueeze(-2) + noise[..., orders]).argmax(-1)  # [*B, L, swaps]
        z = one_hot(winner.movedim(-1, 0), parameter)
        values = f(z)  # [swaps, *B]
        table = values.detach()[which]  # [K, K, *B]
        table = difference(table, table.mean(0)).movedim((0, 1), (-1, -2))  # [*B, j, c]
        shares = (1 / categories - softmax(-noise)).reshape(*q.batch_shape, -1, categories)
        gradient = (shares @ table.to(shares)).reshape(logits.shape)
        return aggregate(values) + surrogate(event_sum(gradient * parameter, q))


class CARMS(Estimator):
    r"""ARMS for categories: samples that avoid each other, weighted for doing so.

    .. math:: \nabla_{\ell} = \frac{1}{S (S - 1)} \sum_{s < t} (f_s - f_t) (z_s - z_t) \,
              \frac{\pi(z_s) \pi(z_t)}{P(z_s, z_t)} \quad \text{for each variable}

    Each category in turn, the rarest first, asks whether a sample stops there: a bit for each
    sample, and the bits of the S samples are coupled as those of :class:`ARMS`. In that order every
    category asks with a probability of at most one half, so every pair of categories occurs and the
    weight is bounded.

    **Forward** S samples, each of them exact. **Backward** as above; f's own parameters as usual.
    **Bias** none. **Cost** `num_samples` evaluations. A multi-sample bound needs independent
    samples, so only the mean.

    Args:
        num_samples: S, at least two.

    Its gradient varies less than that of two independent samples with leave-one-out:

    >>> logits = torch.zeros(20_000, 2, 3, requires_grad=True)

    >>> for estimator in ScoreFunction(2), CARMS(2):
    ...     q = Independent(OneHotCategorical(logits=logits), 1)
    ...     (g,) = torch.autograd.grad(estimator(q, lambda z: 3 * z[..., 0].sum(-1)).sum(), logits)
    ...     print(f"{g[..., 0].mean():.1f} +- {g[..., 0].std():.1f}")
    0.7 +- 1.0
    0.7 +- 0.8

    Source: Dimitriev & Zhou, *CARMS: Categorical-Antithetic-REINFORCE Multi-Sample Gradient
    Estimator*, NeurIPS 2021, arXiv:2110.14002; for S = 2 Dong, Mnih & Tucker, *Coupled Gradient
    Estimators for Discrete Latent Variables*, NeurIPS 2021, arXiv:2106.08056
    """

    unbiased = True
    families = (OneHotCategorical,)
    multi_sample = False
    source = "Dimitriev & Zhou 2021"

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples, 2)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        parameter = base(q).logits
        logits, order = full_precision(parameter.detach()).sort(-1, descending=True)
        log_stop = (logits - logits.logcumsumexp(-1))[..., 1:]  # the last to ask always stops
        rank = _rank(exclusive_bits(log_stop, self.num_samples))  # [S, *B, L]
        category = order.expand(self.num_samples, *order.shape).gather(-1, rank.unsqueeze(-1))
        z = one_hot(category.squeeze(-1), parameter)
        values = f(z)  # [S, *B]
        constant = values.detach()
        gap = difference(constant.unsqueeze(1), constant)  # [S, S, *B]
        ratio = self._ratio(log_stop, rank)
        gap = gap.reshape(*gap.shape, *[1] * (ratio.ndim - gap.ndim))
        credit = (gap * ratio).mean(1)  # [S, *B, L]
        gradient = (credit.unsqueeze(-1) * z).sum(0) / (self.num_samples - 1)
        return aggregate(values) + surrogate(event_sum(gradient * parameter, q))

    def _ratio(self, log_stop: Tensor, rank: Tensor) -> Tensor:
        """pi pi / P of each pair of samples that differ, [S, S, *B, L]."""
        weight = _pair_weight(log_stop, self.num_samples)
        first = torch.maximum(rank.unsqueeze(1), rank) - 1  # where the two parted
        first = first.clamp_min(0).unsqueeze(-1)
        return weight.expand(*first.shape[:-1], -1).gather(-1, first).squeeze(-1)


def _swaps(categories: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order of no swap and of each swap, [swaps, K]; and the number of each (m, j), [K, K]."""
    m, j = torch.triu_indices(categories, categories, 1, device=device)
    orders = torch.arange(categories, device=device).repeat(len(m) + 1, 1)
    number = torch.arange(1, len(m) + 1, device=device)
    orders[number, m], orders[number, j] = j, m
    which = torch.zeros(categories, categories, dtype=torch.long, device=device)
    which[m, j] = which[j, m] = number
    return orders, which


def _rank(stops: Tensor) -> Tensor:
    """The rank of the first stop, rarest (of rank K - 1) first, [*, K - 1] -> [*]."""
    ranks = torch.arange(1, stops.shape[-1] + 1, device=stops.device)
    return (stops * ranks).amax(-1)


def _pair_weight(log_stop: Tensor, num_samples: int) -> Tensor:
    r"""pi pi / P of two samples that parted at each category, [*B, L, K - 1].

    They parted where one stopped, :math:`s (1 - s) / (s - \rho)`, and passed all rarer categories
    together, :math:`(1 - s)^2 / (1 - 2 s + \rho)` each.
    """
    stop = log_stop.exp()
    both = stop * coincidence(log_stop, num_samples)
    passed = 2 * (-stop).log1p() - (1 - 2 * stop + both).log()
    rarer = F.pad(passed[..., 1:].flip(-1).cumsum(-1).flip(-1), (0, 1))
    return rarer.exp() * correction(log_stop, num_samples)
