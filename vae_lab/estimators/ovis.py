"""The score function of a multi-sample bound, with the best control variate for many samples."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..aggregates import Aggregate, difference, log_mean_exp, substitute
from .base import Estimator, Integrand, positive_samples, surrogate


class OVIS(Estimator):
    r"""VIMCO with the baseline that keeps the gradient's signal-to-noise ratio growing with S.

    .. math:: \nabla_\phi = \sum_s (\log \hat Z - v_s - c_s) \nabla_\phi \log q_\phi(z_s), \qquad
              v_s = w_s \Big/ \textstyle\sum_t w_t

    for log-weights f = log w that contain -log q, whose own gradient is the term in v_s. Sampled,
    c_s is the mean of :math:`\log \hat Z - v_s` over other values of z_s, `num_auxiliary` of them;
    otherwise its asymptotic form :math:`c_s = \log \hat Z_{-s} + \log(1 - 1/S)`, with Z_{-s} the
    estimate from the other samples: what remains of :math:`\log \hat Z - v_s - c_s = -\log(1 - v_s)
    - v_s` is of second order.

    **Forward** samples of q; the bound. **Backward** as above; f's own parameters as usual.
    **Bias** none: the authors' gamma, whose term :math:`-\gamma v_s` in c_s depends on z_s and so
    biases, is zero here. **Cost** `num_samples` + `num_auxiliary` evaluations.

    Args:
        num_samples: S, at least two.
        num_auxiliary: samples for c_s, shared by all s; 0 for the asymptotic form.

    The signal-to-noise ratio of VIMCO, then of OVIS, with S = 36:

    >>> mean = torch.zeros(10_000, 1, requires_grad=True)
    >>> p = Independent(Normal(torch.ones(1), 1.0), 1)

    >>> for estimator in ScoreFunction(36), OVIS(36):
    ...     q = Independent(Normal(mean, 1.0), 1)
    ...     log_w = lambda z: p.log_prob(z) - q.log_prob(z)
    ...     (g,) = torch.autograd.grad(estimator(q, log_w, aggregate=log_mean_exp).sum(), mean)
    ...     print(f"{g.mean() / g.std():.1f}")
    0.6
    0.9

    Source: Lievin, Dittadi, Christensen & Winther, *Optimal Variance Control of the Score-Function
    Gradient Estimator for Importance-Weighted Bounds*, NeurIPS 2020, arXiv:2008.01998
    """

    unbiased = True
    families = (Distribution,)
    single_sample = False
    evaluations = "num_samples + num_auxiliary"
    source = "Lievin et al. 2020"

    def __init__(self, num_samples: int = 4, num_auxiliary: int = 0) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples, 2)
        self.num_auxiliary = positive_samples("num_auxiliary", num_auxiliary, 0)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        if aggregate is not log_mean_exp:
            raise ValueError(
                "OVIS estimates the multi-sample bound only: use aggregate=log_mean_exp (the "
                "objective IWAE), or ScoreFunction for another aggregate"
            )
        z = q.sample((self.num_samples + self.num_auxiliary,))
        values = f(z)
        z, (log_w, auxiliary) = z[: self.num_samples], values.tensor_split([self.num_samples])
        constant = log_w.detach()
        credit = difference(log_mean_exp(constant), self._control(constant, auxiliary.detach()))
        return log_mean_exp(log_w) + surrogate((credit * q.log_prob(z)).sum(0))

    def _control(self, log_w: Tensor, auxiliary: Tensor) -> Tensor:
        """c_s, [S, *B]."""
        if not self.num_auxiliary:
            return substitute(log_w, torch.full_like(log_w, -torch.inf), log_mean_exp)
        others = log_w.unsqueeze(1).expand(-1, self.num_auxiliary, *log_w.shape[1:])
        log_z = substitute(others, auxiliary.expand_as(others), log_mean_exp)  # [S, auxiliary, *B]
        v = (auxiliary - log_z).exp().masked_fill(log_z == -torch.inf, 0.0) / len(log_w)
        return (log_z - v).mean(1)
