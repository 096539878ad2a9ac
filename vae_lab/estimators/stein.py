"""Control variates from f's derivative at the samples: f is evaluated nowhere else."""

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from ..aggregates import Aggregate, difference, mean_of_others, possible
from ..distributions import base, full_precision, per_dimension
from .base import Estimator, Integrand, descent, positive_samples, surrogate
from .control import each_event, event_sum, leaf, number, slope


class DoubleCV(Estimator):
    r"""Leave-one-out, with the others' gradients as a second control variate.

    .. math:: g = \frac{1}{S} \sum_s \Big[ f_s - \alpha v_s - \frac{1}{S - 1} \sum_{j \neq s}
              (f_j - \alpha v_j) \Big] (z_s - \pi)
              + \alpha \operatorname{Cov}(z) \overline{\nabla f}

    .. math:: v_s = (z_s - \pi) \cdot \frac{1}{S - 1} \sum_{j \neq s} \nabla f(z_j)

    v_s is a linear approximation of f about the mean, with a slope that sample s has no part in.
    What it takes from the gradient is known, Cov(z) times the slope, and given back. Both the
    sample and its baseline are controlled.

    **Forward** samples of q. **Backward** g. **Bias** none, for any alpha. **Cost** `num_samples`
    evaluations and df/dz at each. alpha descends the square of each datum's g.

    Args:
        num_samples: S, at least two.
        alpha: the second control variate's weight at the start; 0 is leave-one-out.
        learned: train it.

    Its gradient varies less than that of leave-one-out alone:

    >>> logits = torch.zeros(20_000, 3, requires_grad=True)

    >>> for estimator in ScoreFunction(2), DoubleCV(2):
    ...     value = estimator(Independent(Bernoulli(logits=logits), 1), lambda b: 4 * b.sum(-1))
    ...     (g,) = torch.autograd.grad(value.sum(), logits)
    ...     print(f"{g.mean():.1f} +- {g.std():.1f}")
    1.0 +- 1.7
    1.0 +- 0.9

    Source: Titsias & Shi, *Double Control Variates for Gradient Estimation in Discrete Latent
    Variable Models*, AISTATS 2022, arXiv:2111.05300
    """

    unbiased = True
    families = (OneHotCategorical, Bernoulli)
    needs_differentiable = True
    multi_sample = False
    compiles = False  # see compiled.py
    source = "Titsias & Shi 2022"

    def __init__(self, num_samples: int = 2, alpha: float = 0.5, learned: bool = True) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples, 2)
        self.alpha = number(alpha, learned)
        self.learned = learned

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return f(q.sample((self.num_samples,))).mean(0)
        z, values, df_dz = values_and_slopes(q, f, self.num_samples)
        score = z - probabilities(q)
        v = event_sum(score * mean_of_others(df_dz), q)  # [S, *B]
        plain = self._leave_one_out(values.detach(), score, q)
        control = covariance(q, df_dz.mean(0)) - self._leave_one_out(v, score, q)
        g = plain + self.alpha.squeeze(0) * control
        value = values.mean(0) + surrogate(event_sum(g.detach() * base(q).logits, q))
        return value + descent(event_sum(g.square(), q))

    @staticmethod
    def _leave_one_out(values: Tensor, score: Tensor, q: Distribution) -> Tensor:
        return (each_event(difference(values, mean_of_others(values)), q) * score).mean(0)


class RODEO(Estimator):
    r"""Leave-one-out, with Stein control variates that a small network makes of the other samples.

    .. math:: g = \frac{1}{S} \sum_s \Big[ f_s - \frac{1}{S - 1} \sum_{j \neq s}
              \big(f_j + (A \tilde h_j)(z_j)\big) \Big] (z_s - p)
              + \frac{1}{S} \sum_s \big(A \, h_s \cdot (\mathrm{id} - p)\big)(z_s)

    .. math:: (A h)(z) = \frac{1}{D} \sum_d q(\bar z_d) \big(h(z^d) - h(z)\big)

    with z^d the neighbour of z whose bit d is flipped. A h has mean zero under q for every h, since
    A is a step of Gibbs sampling minus the identity. h_s and its companion average a network of two
    outputs over the samples j other than s, at :math:`(f_j, \nabla f(z_j) \cdot (y - z_j))`: f is
    never evaluated at the neighbours.

    **Forward** samples of q. **Backward** g. **Bias** none, for any network. **Cost** `num_samples`
    evaluations and df/dz at each; the network sees S (S - 1) (D + 1) points. It starts at zero,
    where g is leave-one-out, and descends the square of each datum's g.

    Args:
        num_samples: S, at least two.
        hidden: the width of the network's one hidden layer.

    While the network learns, the gradient's standard deviation falls from that of leave-one-out:

    >>> rodeo, f = RODEO(4), lambda b: b.sum(-1).square()

    >>> adam = torch.optim.Adam(rodeo.parameters(), lr=0.02)

    >>> for step in range(41):
    ...     logits = torch.full((500, 3), 1.25, requires_grad=True)
    ...     rodeo(Independent(Bernoulli(logits=logits), 1), f).sum().backward()
    ...     adam.step()
    ...     adam.zero_grad()
    ...     if step in (0, 40):
    ...         print(f"{logits.grad.mean():.1f} +- {logits.grad.std():.1f}")
    0.7 +- 0.7
    0.7 +- 0.1

    Source: Shi, Zhou, Hwang, Titsias & Mackey, *Gradient Estimation with Discrete Stein Operators*,
    NeurIPS 2022, arXiv:2202.09497
    """

    unbiased = True
    families = (Bernoulli,)
    needs_differentiable = True
    multi_sample = False
    compiles = False  # see compiled.py
    source = "Shi et al. 2022"

    def __init__(self, num_samples: int = 2, hidden: int = 32) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples, 2)
        self.hidden = positive_samples("hidden", hidden)
        last = nn.Linear(hidden, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(2, hidden), nn.LeakyReLU(), last)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return f(q.sample((self.num_samples,))).mean(0)
        z, values, df_dz = values_and_slopes(q, f, self.num_samples)
        hard, p = values.detach(), probabilities(q)
        bits, slopes, rates = (per_dimension(x, q) for x in (z, df_dz, p))
        vector, scalar = self._stein(bits, possible(hard), slopes, rates)
        credit = difference(hard, mean_of_others(hard + scalar))
        g = (each_event(credit, q) * (z - p) + vector.reshape(z.shape)).mean(0)
        value = values.mean(0) + surrogate(event_sum(g.detach() * base(q).logits, q))
        return value + descent(event_sum(g.square(), q))

    def _stein(self, z: Tensor, f: Tensor, df_dz: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """A h_s (id - p) at z_s, [S, *B, D], and A h~_s at z_s, [S, *B]."""
        step = 1 - 2 * z  # z^d - z
        h, flipped = self._functions(z, f, df_dz, step)
        rate = p + z * (1 - 2 * p)  # q's probability of the flipped bit
        change = rate.unsqueeze(-1) * (flipped - h)  # [S, *B, D, 2]
        # h(z^d) (z^d - p) - h(z) (z - p), of which only bit d of z^d is not z
        moved = change[..., 0].sum(-1, keepdim=True) * (z - p) + rate * flipped[..., 0] * step
        return moved / z.shape[-1], change[..., 1].mean(-1)

    def _functions(
        self, z: Tensor, f: Tensor, df_dz: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two functions h_s at z_s, [S, *B, 1, 2], and at its neighbours, [S, *B, D, 2]."""
        j = _others(len(z), z.device)
        f, df_dz, z_j = f[j], df_dz[j], z[j]  # [S, S - 1, *B, ...], s then j
        here = (df_dz * (z.unsqueeze(1) - z_j)).sum(-1, keepdim=True)
        linear = torch.cat([here, here + df_dz * step.unsqueeze(1)], -1)
        points = torch.stack([f.unsqueeze(-1).expand_as(linear), linear], -1)
        h = self.network(points.to(next(self.network.parameters()).dtype)).to(points).mean(1)
        return h[..., :1, :], h[..., 1:, :]


def _others(num_samples: int, device: torch.device) -> Tensor:
    """The numbers of the other samples, for each sample, [S, S - 1]."""
    s = torch.arange(num_samples, device=device)
    return s[:-1] + (s[:-1] >= s.unsqueeze(1))  # made there: a copy would wait for the device


def values_and_slopes(
    q: Distribution, f: Integrand, num_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples z [S, *B, *E], f(z) [S, *B] and the constant df/dz."""
    z = leaf(full_precision(q.sample((num_samples,))))
    values = f(z)
    return z.detach(), values, slope(values, z, f, create_graph=False)


def probabilities(q: Distribution) -> Tensor:
    """The mean of z, constant, [*B, *E]."""
    return full_precision(base(q).probs.detach())


def covariance(q: Distribution, v: Tensor) -> Tensor:
    """Cov(z) v for every variable of q, [*B, *E]."""
    p = probabilities(q)
    if isinstance(base(q), Bernoulli):
        return p * (1 - p) * v
    return p * (v - (p * v).sum(-1, keepdim=True))
