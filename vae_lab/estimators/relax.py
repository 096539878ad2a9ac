"""RELAX and LAX: control variates that are networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Distribution,
    Gamma,
    Laplace,
    LogNormal,
    Normal,
    OneHotCategorical,
)

from ..aggregates import Aggregate
from ..distributions import base, like, parameters
from .base import Estimator, Integrand, descent, positive_samples, surrogate
from .baselines import MovingAverage
from .control import (
    ControlNetwork,
    controlled,
    derivatives,
    each_datum,
    each_event,
    event_sum,
    leaf,
    slope,
)
from .rebar import at_relaxed, hard_and_relaxed, log_temperature, relaxed_logits, untied
from .relaxations import harden


class RELAX(Estimator):
    r"""The score function, controlled by a network at the relaxed sample of the same noise.

    .. math:: g = (f(b) - c(\tilde z)) \nabla \log q(b) + \nabla c(z) - \nabla c(\tilde z)

    with z, b and :math:`\tilde z` as in :class:`~vae_lab.estimators.REBAR`. Without f, c is a
    network above the moving average of f, and f may be a black box. With f, c(z) is
    f(sigma(z / tau)) + r(z), REBAR with a correction. The network sees the datum's features where
    there are any.

    **Forward** hard samples of q. **Backward** g. **Bias** none, for any network. **Cost**
    `num_samples` evaluations, and as many at relaxed points with f. The network and log tau descend
    the square of each datum's g.

    Args:
        hidden: the widths of the network's layers.
        with_f: add f at the relaxed sample, which needs a differentiable f.
        temperature: tau > 0 at the start; means something with f only.

    f need not be differentiable. While the network learns, the gradient's standard deviation falls:

    >>> relax, f = RELAX(), lambda b: (b.sum(-1) == 3).float()

    >>> adam = torch.optim.Adam(relax.parameters(), lr=0.01)

    >>> for step in range(41):
    ...     logits = torch.ones(500, 3, requires_grad=True)
    ...     relax(Independent(Bernoulli(logits=logits), 1), f).sum().backward()
    ...     adam.step()
    ...     adam.zero_grad()
    ...     if step in (0, 40):
    ...         print(f"{logits.grad.mean():.1f} +- {logits.grad.std():.1f}")
    0.1 +- 0.2
    0.1 +- 0.1

    Source: Grathwohl, Choi, Wu, Roeder & Duvenaud, *Backpropagation through the Void: Optimizing
    control variates for black-box gradient estimation*, ICLR 2018, arXiv:1711.00123
    """

    unbiased = True
    families = (OneHotCategorical, Bernoulli)
    evaluations = "num_samples, with f 2 num_samples"
    compiles = False  # see compiled.py
    source = "Grathwohl et al. 2018"

    def __init__(
        self,
        hidden: Sequence[int] = (100,),
        with_f: bool = False,
        temperature: float = 0.5,
        num_samples: int = 1,
    ) -> None:
        super().__init__()
        self.hidden, self.with_f = hidden, with_f
        self.needs_differentiable = self.relaxed_points = with_f
        self.num_samples = positive_samples("num_samples", num_samples)
        self.network = ControlNetwork(hidden)
        self.average = MovingAverage()
        self.log_temperature = log_temperature(temperature, learned=with_f)

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.squeeze(0).exp()

    def averages(self) -> list[nn.Module]:
        return [self.average] if torch.is_grad_enabled() and not self.with_f else []

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return aggregate(f(q.sample((self.num_samples,))))
        z = relaxed_logits(q, self.num_samples)
        r = self.network(q, z, context)
        (dr_dz,) = derivatives(r.sum(), [z], create_graph=True)
        log_tau = each_datum(self.log_temperature, q)
        if self.with_f:
            hard, c = hard_and_relaxed(q, f, z, log_tau)
            dc_dz = slope(c, z, at_relaxed(q, f))
        else:
            hard = f(harden(base(q), z.detach()))
            c, _ = self.average(hard.detach(), None)
            dc_dz = torch.zeros_like(z)
        g, by_c, by_slope = controlled(hard, c + r, dc_dz + dr_dz, aggregate, untied(q, z))
        value = aggregate(hard) + surrogate(event_sum(g * base(q).logits, q))
        value = value + descent((by_c * r + event_sum(by_slope * dr_dz, q)).sum(0))
        if not self.with_f:
            return value
        change = (by_c * c + event_sum(by_slope * dc_dz, q)).sum()
        (by_log_tau,) = derivatives(change, [log_tau])
        return value + descent(by_log_tau * self.log_temperature.squeeze(0))


class LAX(Estimator):
    r"""The score function of a continuous sample, controlled by a network that knows the path.

    .. math:: g = (f(z) - c(z)) \nabla_\phi \log q_\phi(z)
              + \frac{\mathrm{d} c}{\mathrm{d} z} \nabla_\phi z(\epsilon; \phi)

    with the network's c above the moving average of f. With c = f that is the pathwise gradient,
    with c = 0 the score function.

    **Forward** samples of q. **Backward** g. **Bias** none, for any network and any f, jumps
    included. **Cost** `num_samples` evaluations. The network descends the square of each datum's g.

    Args:
        hidden: the widths of the network's layers.

    f may be a step function, whose derivative along the path of a sample is zero:

    >>> mean = torch.zeros(10_000, 1, requires_grad=True)

    >>> value = LAX()(Independent(Normal(mean, 1.0), 1), lambda z: (z > 0).float().sum(-1))

    >>> value.sum().backward()

    >>> print(f"{value.mean():.1f}, {mean.grad.mean():.1f}")  # exact: 0.5 and 0.399
    0.5, 0.4

    Source: Grathwohl, Choi, Wu, Roeder & Duvenaud, *Backpropagation through the Void: Optimizing
    control variates for black-box gradient estimation*, ICLR 2018, arXiv:1711.00123
    """

    unbiased = True
    families = (Normal, LogNormal, Laplace, Gamma, Beta)
    compiles = False  # see compiled.py
    source = "Grathwohl et al. 2018"

    def __init__(self, hidden: Sequence[int] = (100,), num_samples: int = 1) -> None:
        super().__init__()
        self.hidden = hidden
        self.num_samples = positive_samples("num_samples", num_samples)
        self.network = ControlNetwork(hidden)
        self.average = MovingAverage()

    def averages(self) -> list[nn.Module]:
        return [self.average] if torch.is_grad_enabled() else []

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return aggregate(f(q.sample((self.num_samples,))))
        z, score, path = score_and_path(q, self.num_samples)
        hard = f(z.detach())
        r = self.network(q, z, context)
        (dr_dz,) = derivatives(r.sum(), [z], create_graph=True)
        average, _ = self.average(hard.detach(), None)

        def gradient(credit: Tensor, weight: Tensor, dc_dz: Tensor) -> Tensor:
            credit, weight = (each_event(x, q) for x in (credit, weight))
            return (credit.unsqueeze(-1) * score + (weight * dc_dz).unsqueeze(-1) * path).sum(0)

        g, by_c, by_slope = controlled(hard, average + r, dr_dz, aggregate, gradient)
        move = (g * torch.stack([*parameters(q).values()], -1)).sum(-1)
        own = descent((by_c * r + event_sum(by_slope * dr_dz, q)).sum(0))
        return aggregate(hard) + surrogate(event_sum(move, q)) + own


def score_and_path(q: Distribution, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples [S, *B, *E], and their d log q / dphi and dz / dphi, [S, *B, *E, parameters].

    Every element of z has parameters of its own, so one sum differentiates them all.
    """
    own = {name: leaf(p.expand(num_samples, *p.shape)) for name, p in parameters(q).items()}
    each = like(q, type(base(q)), **own)
    z = each.rsample()
    # The two share a node where the distribution has made another parameter of its own, as Chi2.
    path = torch.autograd.grad(z.sum(), [*own.values()], retain_graph=True)
    score = torch.autograd.grad(each.log_prob(z.detach()).sum(), [*own.values()])
    return leaf(z), torch.stack(score, -1), torch.stack(path, -1)
