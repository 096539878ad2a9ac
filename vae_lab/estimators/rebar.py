"""REBAR: f at a relaxed sample as the control variate of f at the hard one."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from ..aggregates import Aggregate, possible
from ..distributions import base, full_precision, softmax
from .base import Estimator, Integrand, descent, positive_samples, surrogate
from .control import (
    Gradient,
    controlled,
    derivatives,
    each_datum,
    each_event,
    event_sum,
    leaf,
    number,
    slope,
)
from .relaxations import check_temperature, harden, perturb, squash


class REBAR(Estimator):
    r"""The score function, controlled by f at a relaxed sample of the same noise.

    .. math:: g = (f(b) - \eta \, c(\tilde z)) \nabla \log q(b)
              + \eta \nabla c(z) - \eta \nabla c(\tilde z), \qquad c(z) = f(\sigma(z / \tau))

    for relaxed logits z, their hard sample b = H(z), and :math:`\tilde z` drawn from z given b.
    Here the noise of :math:`\tilde z` is tied to that of z so that both have the same value: f is
    evaluated at one relaxed point instead of two, and only the derivatives differ, see
    :func:`untied`.

    **Forward** hard samples of q. **Backward** g. **Bias** none, for any eta and tau. **Cost**
    2 `num_samples` evaluations and, to learn tau, a second derivative of f. eta and log tau descend
    the square of each datum's g, its variance up to a constant. For another aggregate than the
    mean, :math:`\eta c` takes the place of the sample's own f.

    Args:
        eta: the control variate's weight at the start.
        temperature: tau > 0 at the start.
        learned: train both.

    Its gradient varies less than leave-one-out with as many evaluations, already before eta and tau
    have learned anything:

    >>> logits = torch.zeros(20_000, 3, requires_grad=True)

    >>> for estimator in ScoreFunction(2), REBAR():
    ...     value = estimator(Independent(Bernoulli(logits=logits), 1), lambda b: 4 * b.sum(-1))
    ...     (g,) = torch.autograd.grad(value.sum(), logits)
    ...     print(f"{g.mean():.1f} +- {g.std():.1f}")
    1.0 +- 1.7
    1.0 +- 1.1

    Source: Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein, *REBAR: Low-variance, unbiased gradient
    estimates for discrete latent variable models*, NeurIPS 2017, arXiv:1703.07370
    """

    unbiased = True
    families = (OneHotCategorical, Bernoulli)
    needs_differentiable = True
    relaxed_points = True
    evaluations = "2 num_samples"
    compiles = False  # see compiled.py
    source = "Tucker et al. 2017"

    def __init__(
        self,
        eta: float = 1.0,
        temperature: float = 0.5,
        learned: bool = True,
        num_samples: int = 1,
    ) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)
        self.eta = number(eta, learned)
        self.log_temperature = log_temperature(temperature, learned)
        self.learned = learned

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.squeeze(0).exp()

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return aggregate(f(q.sample((self.num_samples,))))
        eta, log_tau = each_datum(self.eta, q), each_datum(self.log_temperature, q)
        z = relaxed_logits(q, self.num_samples)
        hard, relaxed = hard_and_relaxed(q, f, z, log_tau)
        c = eta * relaxed  # [S, *B]
        dc_dz = slope(c, z, at_relaxed(q, f), create_graph=self.learned)
        g, by_c, by_slope = controlled(hard, c, dc_dz, aggregate, untied(q, z))
        value = aggregate(hard) + surrogate(event_sum(g * base(q).logits, q))
        if not self.learned:
            return value
        change = (by_c * c + event_sum(by_slope * dc_dz, q)).sum()
        by_eta, by_log_tau = derivatives(change, (eta, log_tau))
        own = by_eta * self.eta.squeeze(0) + by_log_tau * self.log_temperature.squeeze(0)
        return value + descent(own)


def hard_and_relaxed(
    q: Distribution, f: Integrand, z: Tensor, log_tau: Tensor
) -> tuple[Tensor, Tensor]:
    """f(H(z)) and f(sigma(z / tau)), each [S, *B], for log tau [*B]."""
    inner = base(q)
    tau = each_event(log_tau.exp(), q)
    hard, relaxed = f(torch.cat([harden(inner, z.detach()), squash(inner, z / tau)])).chunk(2)
    return hard, possible(relaxed)


def at_relaxed(q: Distribution, f: Integrand) -> Integrand:
    """f as a function of relaxed logits, at temperature 1."""
    return lambda z: f(squash(base(q), z))


def relaxed_logits(q: Distribution, num_samples: int) -> Tensor:
    """Noisy logits of q, constant but open to differentiation, [S, *B, *E].

    Bounded, as no network can read the infinite one of a category that is ruled out.
    """
    return leaf(perturb(base(q), num_samples).clamp(-1e4, 1e4))


def untied(q: Distribution, z: Tensor) -> Gradient:
    r"""The gradient for the logits as a function of the control variate.

    z moves with the logits one for one. :math:`\tilde z`, whose noise is held while b stays, moves
    less: with normalised logits the largest Gumbel does not move at all, and the others,
    :math:`\tilde z_i = -\log(E_i / \pi_i + E_b)`, move by :math:`1 - e^{z_i - z_b}`. What is left
    of :math:`\nabla c(z) - \nabla c(\tilde z)` is dc/dz times :math:`e^{z_i - z_b}`; for a bit,
    dc/dz times :math:`1 - q(b)(1 - e^{-|z|})`.
    """
    inner, z = base(q), z.detach()
    logits = full_precision(inner.logits.detach())
    score = harden(inner, z) - squash(inner, logits)
    if isinstance(inner, Bernoulli):
        chosen = torch.where(z > 0, logits, -logits)
        gap = (-chosen).sigmoid() + chosen.sigmoid() * (-z.abs()).exp()
    else:
        gap = (z - z.amax(-1, keepdim=True)).exp()

    def gradient(credit: Tensor, weight: Tensor, dc_dz: Tensor) -> Tensor:
        credit, weight = (each_event(x, q) for x in (credit, weight))
        path = weight * dc_dz * gap
        if not isinstance(inner, Bernoulli):  # the normalisation of the logits
            path = path - softmax(logits) * path.sum(-1, keepdim=True)
        return (credit * score + path).sum(0)

    return gradient


def log_temperature(temperature: float, learned: bool) -> nn.Parameter:
    check_temperature(temperature)
    return number(math.log(temperature), learned)
