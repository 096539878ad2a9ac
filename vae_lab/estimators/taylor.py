"""A control variate that f brings along: its own first-order expansion."""

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal, OneHotCategorical

from ..aggregates import Aggregate, difference
from .base import Estimator, Integrand, positive_samples, surrogate
from .control import event_sum, leaf, slope


class MuProp(Estimator):
    r"""The score function of what a Taylor expansion at the mean leaves over.

    .. math:: \nabla_\phi = \big(f(z) - f(\mu) - f'(\mu) (z - \mu)\big) \nabla_\phi \log q_\phi(z)
              + f'(\mu) \nabla_\phi \mu_\phi

    **Forward** samples of q. **Backward** as above; f's own parameters through the samples only.
    **Bias** none, and for a linear f no variance either. **Cost** `num_samples` + 1 evaluations,
    one of them at the mean, and a backward pass through f.

    Args:
        num_samples: S, each with the same expansion.

    For a linear f the gradient has no variance, for a quadratic f less than the score function's:

    >>> logits = torch.ones(40_000, 3, requires_grad=True)

    >>> for f in (lambda b: b.sum(-1)), (lambda b: b.sum(-1).square()):
    ...     for estimator in ScoreFunction(1, "none"), MuProp():
    ...         value = estimator(Independent(Bernoulli(logits=logits), 1), f)
    ...         (g,) = torch.autograd.grad(value.sum(), logits)
    ...         print(f"{g.mean():.1f} +- {g.std():.1f}")
    0.2 +- 0.8
    0.2 +- 0.0
    0.8 +- 1.8
    0.8 +- 0.6

    Source: Gu, Levine, Sutskever & Mnih, *MuProp: Unbiased Backpropagation for Stochastic Neural
    Networks*, ICLR 2016, arXiv:1511.05176
    """

    unbiased = True
    families = (Bernoulli, OneHotCategorical, Normal)
    needs_differentiable = True
    relaxed_points = True
    multi_sample = False
    compiles = False  # see compiled.py
    evaluations = "num_samples + 1"
    source = "Gu et al. 2016"

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        z = q.sample((self.num_samples,))
        if not torch.is_grad_enabled():
            return aggregate(f(z))
        mean = leaf(q.mean)
        values = f(torch.cat([z, mean.unsqueeze(0)]))
        at_samples, at_mean = values[:-1], values[-1]
        again = lambda z: f(z.unsqueeze(0))  # noqa: E731
        df_dz = slope(at_mean, mean, again, create_graph=False)  # [*B, *E]
        expansion = at_mean.detach() + event_sum(df_dz * (z - mean.detach()), q)  # [S, *B]
        credit = difference(at_samples.detach(), expansion) / self.num_samples
        score = surrogate((credit * q.log_prob(z)).sum(0))
        return aggregate(at_samples) + score + surrogate(event_sum(df_dz * q.mean, q))
