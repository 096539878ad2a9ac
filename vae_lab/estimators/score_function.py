"""Gradients through the density: nothing is asked of f but its values."""

from typing import Literal

from torch import Tensor, nn
from torch.distributions import Distribution

from ..aggregates import Aggregate, credit
from .base import Estimator, Integrand, descent, positive_samples, surrogate
from .baselines import BASELINES, Baseline, MovingAverage


class ScoreFunction(Estimator):
    r"""REINFORCE, with the baseline of one's choice.

    .. math:: \nabla_\phi \mathbb{E}_{q_\phi}[f(z)] = \mathbb{E}_{z_{1:S}}\Big[ \sum_s
              \big(A(f_{1:S}) - A(f_1, .., c_s, .., f_S)\big) \nabla_\phi \log q_\phi(z_s) \Big]

    What sample s is credited with is what the aggregate A would lose if f_s were replaced by the
    counterfactual c_s, which does not depend on z_s. With the mean, A = 1/S sum f, that is the
    usual (f_s - c_s) / S: REINFORCE (c = 0), NVIL (learned) and RLOO (leave-one-out). With
    log-mean-exp and leave-one-out it is VIMCO.

    **Forward** samples of q. **Backward** the score, weighted; f's own parameters as usual.
    **Bias** none. **Cost** `num_samples` evaluations.

    Args:
        num_samples: S; leave-one-out needs two.
        baseline: none, moving_average, learned (from the context), leave_one_out or
            leave_one_out_arithmetic (the other VIMCO); or a
            :class:`~vae_lab.estimators.baselines.Baseline`.

    A baseline lowers the variance of the gradient and does not change its mean:

    >>> logits = torch.ones(10_000, 3, requires_grad=True)

    >>> for baseline in "none", "leave_one_out":
    ...     q = Independent(Bernoulli(logits=logits), 1)
    ...     value = ScoreFunction(2, baseline)(q, lambda b: 3 + b.sum(-1))
    ...     (g,) = torch.autograd.grad(value.sum(), logits)
    ...     print(f"{g.mean():.1f} +- {g.std():.1f}")
    0.2 +- 1.5
    0.2 +- 0.4

    Source: Williams, *Simple Statistical Gradient-Following Algorithms for Connectionist
    Reinforcement Learning*, 1992; Mnih & Rezende, *Variational Inference for Monte Carlo
    Objectives*, ICML 2016, arXiv:1602.06725; Kool, van Hoof & Welling, *Buy 4 REINFORCE Samples,
    Get a Baseline for Free!*, 2019
    """

    unbiased = True
    families = (Distribution,)
    source = "Williams 1992; Mnih & Gregor 2014; Mnih & Rezende 2016; Kool et al. 2019"

    def __init__(
        self,
        num_samples: int = 2,
        baseline: Literal[
            "none", "moving_average", "learned", "leave_one_out", "leave_one_out_arithmetic"
        ]
        | Baseline = "leave_one_out",
    ) -> None:
        super().__init__()
        if isinstance(baseline, str):
            if baseline not in BASELINES:
                raise ValueError(
                    f"baseline must be one of {', '.join(BASELINES)}, got {baseline!r}"
                )
            baseline = BASELINES[baseline]()
        self.num_samples = positive_samples("num_samples", num_samples, baseline.least_samples)
        self.baseline = baseline

    def averages(self) -> list[nn.Module]:
        return [m for m in self.baseline.modules() if isinstance(m, MovingAverage)]

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        z = q.sample((self.num_samples,))
        values = f(z)  # [S, *B]
        constant = values.detach()
        counterfactual, baseline_loss = self.baseline(constant, context)
        gain = credit(constant, counterfactual, aggregate)
        score = surrogate((gain * q.log_prob(z)).sum(0))
        return aggregate(values) + score + descent(baseline_loss)
