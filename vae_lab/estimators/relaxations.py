"""Gradients through a continuous stand-in for a discrete sample: biased, of low variance."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from ..aggregates import Aggregate
from ..distributions import base, full_precision, one_hot, softmax
from ..schedules import Schedule, as_schedule, bounds
from .base import Estimator, Integrand, Unbiased, positive_samples, surrogate


class _Relaxation(Estimator):
    """Evaluates f at :meth:`sample`, through which autograd finds a way to the logits."""

    unbiased: Unbiased = False
    families: tuple[type[Distribution], ...] = (OneHotCategorical, Bernoulli)
    needs_differentiable = True

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        return aggregate(f(self.sample(q)))

    def sample(self, q: Distribution) -> Tensor:
        raise NotImplementedError


class GumbelSoftmax(_Relaxation):
    r"""Gumbel-Softmax, also known as the Concrete relaxation; straight-through if `hard`.

    .. math:: y = \operatorname{softmax}\big((\ell + G) / \tau\big),
              \quad G_k \sim \text{Gumbel}(0, 1)

    and for Bernoulli variables :math:`y = \sigma((\ell + G_1 - G_0) / \tau)`. As
    :math:`\tau \to 0`, y becomes an exact one-hot sample and the gradient's variance infinite.

    **Forward** y, inside the simplex; or, if `hard`, the exact sample argmax y. **Backward**
    through y in both cases. **Bias** falls with the temperature. **Cost** `num_samples`
    evaluations. A closed-form KL of the discrete q beside a relaxed y is not a bound; with `hard`
    it is.

    Args:
        temperature: tau > 0, a number or a schedule.
        hard: the straight-through variant.

    The exact gradient, and those at a high and a low temperature: less bias, but more variance:

    >>> logits = torch.zeros(40_000, 2, 3, requires_grad=True)

    >>> for estimator in Exact(), GumbelSoftmax(1.0), GumbelSoftmax(0.2):
    ...     q = Independent(OneHotCategorical(logits=logits), 1)
    ...     value = estimator(q, lambda z: 2 * z[..., 0].sum(-1).square())
    ...     (g,) = torch.autograd.grad(value.sum(), logits)
    ...     print(f"{g[..., 0].mean():.1f} +- {g[..., 0].std():.1f}")
    0.7 +- 0.0
    0.4 +- 0.3
    0.7 +- 1.5

    Source: Jang, Gu & Poole, *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017,
    arXiv:1611.01144; Maddison, Mnih & Teh, *The Concrete Distribution*, ICLR 2017, arXiv:1611.00712
    """

    relaxed_points = True
    source = "Jang et al. 2017; Maddison et al. 2017"

    def __init__(
        self, temperature: float | Schedule = 1.0, hard: bool = False, num_samples: int = 1
    ) -> None:
        super().__init__(num_samples)
        self.temperature = positive_temperature(temperature)
        self.hard = hard
        self.relaxed_points = not hard

    def sample(self, q: Distribution) -> Tensor:
        inner = base(q)
        perturbed = perturb(inner, self.num_samples)
        y = squash(inner, perturbed / self.temperature.value)
        return harden(inner, perturbed) + surrogate(y) if self.hard else y


class StraightThrough(_Relaxation):
    r"""An exact sample whose gradient is that of the probabilities.

    **Forward** a sample of q. **Backward** dz/dl := dpi/dl, pi = softmax(l) or sigmoid(l).
    **Bias** none for an f that is linear in z. **Cost** `num_samples` evaluations.

    Its gradient of a linear f is exact, without bias or variance. That of a quadratic f is biased:

    >>> logits = torch.full((10_000, 3), -1.0, requires_grad=True)

    >>> for f in (lambda b: b.sum(-1)), (lambda b: b.sum(-1).square()):
    ...     for estimator in Exact(), StraightThrough():
    ...         value = estimator(Independent(Bernoulli(logits=logits), 1), f)
    ...         (g,) = torch.autograd.grad(value.sum(), logits)
    ...         print(f"{g.mean():.1f} +- {g.std():.1f}")
    0.2 +- 0.0
    0.2 +- 0.0
    0.4 +- 0.0
    0.3 +- 0.3

    Source: Bengio, Leonard & Courville, *Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation*, 2013, arXiv:1308.3432
    """

    unbiased = "linear f"
    source = "Bengio et al. 2013"

    def sample(self, q: Distribution) -> Tensor:
        return q.sample((self.num_samples,)) + surrogate(base(q).probs)


def positive_temperature(temperature: float | Schedule, name: str = "temperature") -> Schedule:
    schedule = as_schedule(temperature)
    check_temperature(bounds(schedule)[0], name)
    return schedule


def check_temperature(least: float, name: str = "temperature") -> None:
    """Refuses what is not positive, and warns where relaxed samples hardly differ from hard ones.

    Far below that, at 1e-5 say, float32 no longer tells them apart: their derivative is zero.
    """
    if not least > 0:
        raise ValueError(f"{name} must be positive, got {least:g}")
    if least < 0.05:
        warnings.warn(
            f"{name} {least:g} is below 0.05: the gradient's variance grows as 1/temperature",
            stacklevel=4,
        )


def exponential(shape: torch.Size, like: Tensor) -> Tensor:
    """Standard exponential noise, -log u."""
    return uniform(shape, like).log_().neg_().to(like.dtype)


def gumbel(shape: torch.Size, like: Tensor) -> Tensor:
    """Standard Gumbel noise, -log(-log u)."""
    return exponential(shape, like).log_().neg_()


def logistic(shape: torch.Size, like: Tensor) -> Tensor:
    """Standard logistic noise, log(u / (1 - u)): the difference of two Gumbels."""
    u = uniform(shape, like)
    return (u.log() - u.neg_().log1p_()).to(like.dtype)


def uniform(shape: torch.Size, like: Tensor) -> Tensor:
    """u inside (0, 1), in float64: so fine that both tails of what is made of it are exact.

    On a CPU that takes half of the time of `exponential_`, of which torch has no fast version.
    """
    precise = torch.float32 if like.device.type == "mps" else torch.float64
    u = torch.rand(shape, dtype=precise, device=like.device)
    return u.clamp_min_(torch.finfo(precise).eps / 4)


def perturb(q: Any, num_samples: int) -> Tensor:
    """Logits plus noise, whose argmax (whose sign) is an exact sample of q, [S, *logits]."""
    logits = full_precision(q.logits)
    noise = logistic if isinstance(q, Bernoulli) else gumbel
    return logits + noise(torch.Size((num_samples, *logits.shape)), logits)


def squash(q: Distribution, logits: Tensor) -> Tensor:
    """softmax or sigmoid: from logits to the inside of q's support."""
    return logits.sigmoid() if isinstance(q, Bernoulli) else softmax(logits)


def harden(q: Distribution, logits: Tensor) -> Tensor:
    """The nearest point of q's support."""
    if isinstance(q, Bernoulli):
        return (logits > 0).to(logits.dtype)
    return one_hot(logits.argmax(-1), logits)
