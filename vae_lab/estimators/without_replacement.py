"""Discrete samples that all differ: no evaluation of f is spent twice on one state."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from ..aggregates import Aggregate
from .base import Estimator, Integrand, base, full_precision, positive_samples, surrogate
from .exact import num_states
from .relaxations import gumbel


class UnorderedSet(Estimator):
    r"""Samples without replacement, averaged over the orders in which they could have been drawn.

    .. math:: \nabla_\phi = \sum_{s \in S} p(s) R(S, s) \,
              \big(f(s) - B(S, s)\big) \nabla_\phi \log p(s)

    .. math:: B(S, s) = p(s) f(s) + \sum_{s' \in S \setminus s}
              p(s') R^{D \setminus s}(S, s') f(s'),
              \qquad R^D(S, s) = P^{D \setminus s}(S \setminus s) / P^D(S)

    with :math:`P^D(S)` the probability to draw the set S from the domain D.

    **Forward** distinct samples, weighted by :math:`p(s) R(S, s)`. **Backward** as above; f's own
    parameters through the weighted samples. **Bias** none. **Cost** `num_samples` evaluations, or
    as many as q has states, and then it is exact.

    Args:
        num_samples: the size of S, at least two.

    Source: Kool, van Hoof & Welling, *Estimating Gradients for Discrete Random Variables by
    Sampling without Replacement*, ICLR 2020, arXiv:2002.06043; drawn by stochastic beam search,
    ICML 2019, arXiv:1903.06059
    """

    unbiased = True
    families = (Bernoulli, OneHotCategorical)
    multi_sample = False
    source = "Kool et al. 2020"

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples, 2)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        states, log_p = beam_search(_log_pi(q), self.num_samples, race=True)
        z = _points(q, states)
        values = f(z)  # [S, *B]
        constant = values.detach()
        weight, baseline = set_weights(log_p, constant)
        credit = weight * (constant - baseline)
        return (weight * values).sum(0) + surrogate((credit * q.log_prob(z)).sum(0))


class SumAndSample(Estimator):
    r"""The most probable states summed, the others sampled.

    .. math:: \nabla_\phi = \sum_{z \in C} q(z) \big(f(z) - b\big) \nabla_\phi \log q(z)
              + q(\bar C) \big(f(\bar z) - b\big) \nabla_\phi \log q(\bar z),
              \quad \bar z \sim q(\cdot \mid \bar C)

    with C the k most probable states and b the mean of f over C, which no sample has a part in.

    **Forward** the value of the same sum. **Backward** as above; f's own parameters through that
    sum. **Bias** none. **Cost** `num_summed` + `num_samples` evaluations. It gains as much as q(C)
    is large: nothing for hundreds of undecided bits.

    Args:
        num_summed: k; one state of q always remains.
        num_samples: independent samples of the rest.

    Source: Liu, Regier, Tripuraneni, Jordan & McAuliffe, *Rao-Blackwellized Stochastic Gradients
    for Discrete Distributions*, ICML 2019, arXiv:1810.04777
    """

    unbiased = True
    families = (Bernoulli, OneHotCategorical)
    multi_sample = False
    evaluations = "num_summed + num_samples"
    source = "Liu et al. 2019"

    def __init__(self, num_summed: int = 3, num_samples: int = 1) -> None:
        super().__init__()
        self.num_summed = positive_samples("num_summed", num_summed)
        self.num_samples = positive_samples("num_samples", num_samples)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        log_pi, summed = _log_pi(q), min(self.num_summed, num_states(q) - 1)
        top, log_p = beam_search(log_pi, summed)
        z = _points(q, torch.cat([top, _outside(top, log_pi, self.num_samples)]))
        values = f(z)  # [k + S, *B]
        weight = self._weights(log_p).to(values)
        b = (log_p.softmax(0) * values[:summed].detach()).sum(0)
        score = surrogate((weight * (values.detach() - b) * q.log_prob(z)).sum(0))
        return (weight * values).sum(0) + score

    def _weights(self, log_p: Tensor) -> Tensor:
        """Probabilities of the summed states, and the rest of the mass shared by the samples."""
        p = log_p.exp()
        share = (1 - p.sum(0)) / self.num_samples
        return torch.cat([p, share.expand(self.num_samples, *share.shape)])


def beam_search(log_pi: Tensor, size: int, race: bool = False) -> tuple[Tensor, Tensor]:
    r"""The `size` most probable states of independent variables; in a race, the first to arrive.

    In a race each state arrives after an exponential time of rate p(state), so the order of arrival
    is that of draws without replacement. A prefix arrives with the first of its states. That one
    goes on through a category drawn from pi; the other categories start afresh, as the exponential
    has no memory.

    Args:
        log_pi: log-probabilities of the variables, [*B, L, K].

    Returns: The categories of the states, best or first to arrive first, [size, *B, L]; their
        log-probabilities.
    """
    batch, (variables, categories) = log_pi.shape[:-2], log_pi.shape[-2:]
    states = log_pi.new_zeros((*batch, 1, 0), dtype=torch.long)
    log_p = log_pi.new_zeros((*batch, 1))
    log_time = torch.full_like(log_p, -torch.inf)
    for variable in range(variables):
        step = log_pi[..., variable, :].unsqueeze(-2)  # [*B, 1, K]
        log_p = log_p.unsqueeze(-1) + step  # [*B, beams, K]
        cost = torch.logaddexp(log_time.unsqueeze(-1), _log_delay(log_p, step)) if race else -log_p
        cost = cost.flatten(-2)
        log_time, index = cost.topk(min(size, cost.shape[-1]), largest=False)
        log_p = log_p.flatten(-2).gather(-1, index)
        parent = (index // categories).unsqueeze(-1).expand(*index.shape, variable)
        states = torch.cat([states.gather(-2, parent), (index % categories).unsqueeze(-1)], dim=-1)
    return states.movedim(-2, 0), log_p.movedim(-1, 0)


def _log_delay(log_p: Tensor, step: Tensor) -> Tensor:
    """By how much each category follows its prefix, in logs: not at all for a draw of pi."""
    first = (step + gumbel(log_p.shape, log_p)).argmax(-1, keepdim=True)
    delay = -gumbel(log_p.shape, log_p) - log_p
    return delay.scatter(-1, first, -torch.inf)


def _outside(top: Tensor, log_pi: Tensor, num_samples: int) -> Tensor:
    """Samples of q outside the states `top`, [k, *B, L] -> [S, *B, L].

    Of k + 1 distinct states at least one is not among k; the first such is the first of all the
    others.
    """
    races = log_pi.expand(num_samples, *log_pi.shape)
    states, _ = beam_search(races, len(top) + 1, race=True)  # [k + 1, S, *B, L]
    seen = (states.unsqueeze(1) == top.unsqueeze(1)).all(-1).any(1)  # [k + 1, S, *B]
    first = seen.long().argmin(0, keepdim=True).unsqueeze(-1)  # [1, S, *B, 1]
    return states.gather(0, first.expand(1, *states.shape[1:])).squeeze(0)


def set_weights(log_p: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights and baselines of k distinct states, from their log-probabilities and values [k, *B].

    .. math:: P^D(S) = \int_0^\infty e^{-t}
              \prod_{s \in S} \big(1 - e^{-t p(s) / (1 - p(S))}\big) dt

    is the probability that all of S arrive before any other state; to leave a state out of the
    domain is to leave out its factor. The trapezoidal rule in u, :math:`\log t = u - e^{-u}`, is
    good to 1e-8.

    Returns:
        :math:`p(s) R(S, s)` and :math:`B(S, s)`, each [k, *B].
    """
    u = torch.linspace(-3.4, 3.8, 49, dtype=log_p.dtype, device=log_p.device)
    u = u.reshape(-1, *[1] * log_p.ndim)
    log_t = u - (-u).exp()
    least = torch.finfo(log_p.dtype).eps  # all that 1 - p(S) can resolve
    log_rest = (-log_p.logsumexp(0).clamp_max(-least).expm1()).log()
    factor = _log1m_exp_exp(log_t + log_p - log_rest)  # [nodes, k, *B]
    step = log_t - log_t.exp() + (-u).exp().log1p()  # exp(-t) dt/du
    product = step + factor.sum(1, keepdim=True)
    log_all, log_one = product.logsumexp(0), (product - factor).logsumexp(0)  # [1, *B], [k, *B]
    density = (product - factor - log_one).exp()  # of the node, given S without s, sums to one
    term = (log_p - factor).exp() * values
    others = term.sum(1, keepdim=True) - term
    return (log_p + log_one - log_all).exp(), log_p.exp() * values + (density * others).sum(0)


def _log1m_exp_exp(y: Tensor) -> Tensor:
    """log(1 - exp(-exp(y))), which is y itself where exp(y) would underflow."""
    shown = y.clamp_min(-40)
    return (-(-shown.exp()).expm1()).log() + (y - shown)


def _log_pi(q: Distribution) -> Tensor:
    """Log-probabilities of each variable's values, without gradient, [*B, L, K]."""
    logits = full_precision(base(q).logits.detach())
    if isinstance(base(q), Bernoulli):
        pair = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
        return pair.reshape(*q.batch_shape, -1, 2)
    return logits.log_softmax(-1).reshape(*q.batch_shape, -1, logits.shape[-1])


def _points(q: Distribution, states: Tensor) -> Tensor:
    """Categories [S, *B, L] as values of q, [S, *B, *E]."""
    logits = base(q).logits
    if isinstance(base(q), OneHotCategorical):
        states = F.one_hot(states, logits.shape[-1])
    return states.reshape(-1, *q.batch_shape, *q.event_shape).to(logits)
