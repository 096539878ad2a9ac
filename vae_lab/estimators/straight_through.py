"""Exact samples with better stand-in gradients than the probabilities' own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from ..distributions import base, full_precision, log_softmax
from ..schedules import Schedule, bounds
from .base import Unbiased, surrogate
from .relaxations import _Relaxation, harden, perturb, positive_temperature, squash


class _StandIn(_Relaxation):
    """An exact sample with the gradient of :meth:`stand_in`."""

    def __init__(self, temperature: float | Schedule, num_samples: int) -> None:
        super().__init__(num_samples)
        self.temperature = positive_temperature(temperature)

    def sample(self, q: Distribution) -> Tensor:
        inner = base(q)
        z = harden(inner, perturb(inner, self.num_samples))
        return z + surrogate(self.stand_in(inner, z))

    def stand_in(self, q: Distribution, x: Tensor) -> Tensor:
        """A differentiable tensor whose gradient the samples x of q are given, [S, *B, *E]."""
        raise NotImplementedError


def moved(q: Any, goal: Tensor) -> Tensor:
    """The logits of q at the constant `goal`, as if they had been carried there."""
    return goal + surrogate(full_precision(q.logits))


class DecoupledSTGumbelSoftmax(_Relaxation):
    r"""Gumbel-Softmax with one temperature for the sample and another one for its gradient.

    .. math:: y = \operatorname{softmax}\big((\ell + G) / \tau_f\big), \quad
              \frac{\partial y}{\partial \ell} := \frac{\partial}{\partial \ell}
              \operatorname{softmax}\big((\ell + G) / \tau_b\big), \quad \text{with the same } G

    A cold forward pass shows the decoder nearly discrete codes while a warm backward pass keeps the
    gradient's variance down. Equal temperatures are Gumbel-Softmax; as tau_f goes to 0 this becomes
    the hard Gumbel-Softmax at temperature tau_b.

    **Forward** y, inside the simplex. **Backward** through the softmax at tau_b. **Bias** at all
    temperatures. **Cost** `num_samples` evaluations.

    Args:
        forward_temperature: tau_f > 0, a number or a schedule.
        backward_temperature: tau_b > 0, a number or a schedule.

    Its codes are as near to one-hot as those at the low temperature (their largest entry is 0.91 on
    average), and its gradient varies as little as the one at the high temperature:

    >>> logits = torch.zeros(10_000, 2, 3, requires_grad=True)

    >>> for estimator in GumbelSoftmax(0.2), GumbelSoftmax(1.0), DecoupledSTGumbelSoftmax(0.2, 1.0):
    ...     z = estimator.sample(Independent(OneHotCategorical(logits=logits), 1))
    ...     (g,) = torch.autograd.grad(10 * z[..., 0].sum(), logits)
    ...     print(f"{z.amax(-1).mean():.2f}, {g[..., 0].mean():.1f} +- {g[..., 0].std():.1f}")
    0.91, 2.2 +- 3.7
    0.65, 1.5 +- 0.8
    0.91, 1.5 +- 0.8

    Source: Shah, Yan, Mozer & Liu, *Improving Discrete Optimisation Via Decoupled Straight-Through
    Gumbel-Softmax*, 2024, arXiv:2410.13331
    """

    relaxed_points = True
    source = "Shah et al. 2024"

    def __init__(
        self,
        forward_temperature: float | Schedule = 0.3,
        backward_temperature: float | Schedule = 1.0,
        num_samples: int = 1,
    ) -> None:
        super().__init__(num_samples)
        self.forward_temperature = positive_temperature(forward_temperature, "forward_temperature")
        self.backward_temperature = positive_temperature(
            backward_temperature, "backward_temperature"
        )

    def sample(self, q: Distribution) -> Tensor:
        inner = base(q)
        perturbed = perturb(inner, self.num_samples)
        y = squash(inner, perturbed.detach() / self.forward_temperature.value)
        return y + surrogate(squash(inner, perturbed / self.backward_temperature.value))


class GappedStraightThrough(_StandIn):
    r"""Straight-through at logits moved, without randomness, until their argmax is the sample.

    .. math:: \tilde\ell = \ell + m_1 - m_2, \quad m_1 = x \big(\max_j \ell_j - \ell\big), \quad
              m_2 = (1 - x) \big(\ell - \max_j \ell_j + g\big)_+

    The sampled class is raised to the largest logit and all others are pushed at least the gap g
    below it. The moves m_1 and m_2 are constants. Of a bit the logit, the difference of its two
    classes', becomes at least g on the sample's side. The gap "expected" is what Gumbel noise
    leaves on average between the first and the second, given the sample:
    :math:`-\log(1 - \pi_x) / \pi_x`.

    **Forward** a sample of q. **Backward** the softmax of moved logits over tau. **Bias** at all
    temperatures, also for a linear f. **Cost** `num_samples` evaluations.

    Args:
        temperature: tau > 0, a number or a schedule.
        gap: g >= 0, or "expected" (the paper's GST-p).

    The gradient of the hard Gumbel-Softmax, then this one, which varies less. Exact is 0.22:

    >>> logits = torch.zeros(40_000, 2, 3, requires_grad=True)

    >>> for estimator in GumbelSoftmax(0.5, hard=True), GappedStraightThrough(0.5):
    ...     q = Independent(OneHotCategorical(logits=logits), 1)
    ...     (g,) = torch.autograd.grad(estimator(q, lambda z: z[..., 0].sum(-1)).sum(), logits)
    ...     print(f"{g[..., 0].mean():.2f} +- {g[..., 0].std():.2f}")
    0.20 +- 0.18
    0.24 +- 0.07

    Source: Fan, Chi, Rudnicky & Ramadge, *Training Discrete Deep Generative Models via Gapped
    Straight-Through Estimator*, ICML 2022
    """

    source = "Fan et al. 2022"

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        gap: float | str = 1.0,
        num_samples: int = 1,
    ) -> None:
        if gap != "expected" and (isinstance(gap, str) or not gap >= 0):
            raise ValueError(f"gap must be 'expected' or not negative, got {gap!r}")
        super().__init__(temperature, num_samples)
        self.gap = gap

    def stand_in(self, q: Distribution, x: Tensor) -> Tensor:
        return squash(q, moved(q, self._gapped(q, x)) / self.temperature.value)

    def _gapped(self, q: Any, x: Tensor) -> Tensor:
        logits = full_precision(q.logits.detach())
        gap = expected_gap(q, x) if isinstance(self.gap, str) else self.gap
        if isinstance(q, Bernoulli):
            side = 2 * x - 1
            return side * (side * logits).clamp_min(gap)
        largest = logits.amax(-1, keepdim=True)
        return torch.where(x > 0, largest, torch.minimum(logits, largest - gap))


class ReinMax(_StandIn):
    r"""Straight-through to second order: Heun's method where straight-through is Euler's.

    .. math:: \nabla_\ell = 2 J(m)\, g - \tfrac{1}{2} J(\pi)\, g, \qquad
              m = \tfrac{1}{2} \big(x + \operatorname{softmax}(\ell / \tau)\big), \quad
              J(p) = \operatorname{diag}(p) - p p^\top, \quad g = \frac{\partial f}{\partial z}(x)

    At temperature 1 it is, sample by sample, Shekhovtsov's ZGR,
    :math:`\tfrac{1}{2} J(\pi) g + \tfrac{1}{2} (x - \pi)(x - \pi)^\top g`.

    **Forward** a sample of q. **Backward** as above. **Bias** none for an f that is quadratic in z
    if tau = 1; a larger tau trades bias for variance. **Cost** `num_samples` evaluations.

    Args:
        temperature: tau > 0, a number or a schedule; the authors use 1 to 1.5.

    Its mean is exact for a quadratic f. That of straight-through, in the second line, is not:

    >>> logits = torch.full((10_000, 3), -1.0, requires_grad=True)

    >>> for estimator in Exact(), StraightThrough(), ReinMax():
    ...     q = Independent(Bernoulli(logits=logits), 1)
    ...     value = estimator(q, lambda b: b.sum(-1).square())
    ...     (g,) = torch.autograd.grad(value.sum(), logits)
    ...     print(f"{g.mean():.1f} +- {g.std():.1f}")
    0.4 +- 0.0
    0.3 +- 0.3
    0.4 +- 0.5

    Source: Liu, Dong, Liu, Yu & Gao, *Bridging Discrete and Backpropagation: Straight-Through and
    Beyond*, NeurIPS 2023, arXiv:2304.08612; Shekhovtsov, *Cold Analysis of Rao-Blackwellized
    Straight-Through Gumbel-Softmax Gradient Estimator*, ICML 2023
    """

    unbiased: Unbiased = "quadratic f"
    source = "Liu et al. 2023; Shekhovtsov 2023"

    def __init__(self, temperature: float | Schedule = 1.0, num_samples: int = 1) -> None:
        super().__init__(temperature, num_samples)
        if bounds(self.temperature) != (1.0, 1.0):
            self.unbiased = False

    def stand_in(self, q: Any, x: Tensor) -> Tensor:
        logits = full_precision(q.logits)
        midpoint = 0.5 * (x + squash(q, logits.detach() / self.temperature.value))
        unsquashed = midpoint.logit() if isinstance(q, Bernoulli) else midpoint.log()
        # The first one's value is the midpoint, its derivative J(midpoint).
        return 2 * squash(q, moved(q, unsquashed)) - 0.5 * squash(q, logits)


def expected_gap(q: Any, x: Tensor) -> Tensor:
    r"""Mean gap between the two largest of l + G, given that x is the largest, [*, 1]; of bits [*].

    .. math:: \mathbb{E}[\text{first} - \text{second} \mid x] = -\log(1 - \pi_x) / \pi_x
    """
    logits = full_precision(q.logits.detach())
    if isinstance(q, Bernoulli):
        chosen = (2 * x - 1) * logits
        return F.softplus(chosen) / chosen.sigmoid()
    log_pi = log_softmax(logits)
    log_others = log_pi.masked_fill(x > 0, -torch.inf).logsumexp(-1, keepdim=True)  # log(1 - pi_x)
    pi = (x * log_pi.exp()).sum(-1, keepdim=True)
    return -torch.where(pi < 0.5, torch.log1p(-pi), log_others) / pi
