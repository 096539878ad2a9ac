"""The expectation itself, by enumeration of the support."""

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, OneHotCategorical
from torch.utils.checkpoint import checkpoint

from ..aggregates import Aggregate, weighted_sum
from ..distributions import num_states as num_states
from ..distributions import power
from ..distributions import support as support
from .base import Estimator, Integrand, positive_samples


class Exact(Estimator):
    r"""Sums over the whole support, :math:`\sum_z q(z) f(z)`: no variance, no bias.

    **Forward** every state of q. **Backward** through the probabilities. **Bias** none. **Cost**
    K^L evaluations for L variables of K states. For `num_samples` S > 1 the expectation is that
    of the aggregate over S independent samples: f is still evaluated once a state, and the
    S-tuples are formed from its values.

    Where the states times the batch are more than `max_points`, f is called on one chunk of the
    states after the other and keeps nothing: the backward pass calls it on each chunk again, with
    the same noise.

    Args:
        max_states: a larger number of states (of S-tuples of them) is refused.
        max_points: evaluations of f that fit in memory at a time.

    The chance that three fair bits are all 1, and its derivative by each logit:

    >>> logits = torch.zeros(3, requires_grad=True)

    >>> value = Exact()(Independent(Bernoulli(logits=logits), 1), lambda b: b.prod(-1))

    >>> value.backward()

    >>> print(value.item(), logits.grad)
    0.125 tensor([0.0625, 0.0625, 0.0625])
    """

    unbiased = True
    families = (Bernoulli, Categorical, OneHotCategorical)
    evaluations = "K^L"
    source = "enumeration"

    def __init__(
        self, num_samples: int = 1, max_states: int = 4096, max_points: int = 2**17
    ) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)
        self.max_states = positive_samples("max_states", max_states)
        self.max_points = positive_samples("max_points", max_points)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        self._refuse_large(q)
        z = support(q)
        values, log_qz = self._evaluate(f, z, q.batch_shape.numel()), q.log_prob(z)  # [K^L, *B]
        states = torch.arange(len(z), device=z.device)
        tuples = torch.cartesian_prod(*[states] * self.num_samples)
        tuples = tuples.reshape(-1, self.num_samples).T  # [S, states^S]
        return weighted_sum(log_qz[tuples].sum(0).exp(), aggregate(values[tuples]))

    def _evaluate(self, f: Integrand, z: Tensor, batch: int) -> Tensor:
        chunk = max(self.max_points // max(batch, 1), 1)
        if len(z) <= chunk:
            return f(z)
        return torch.cat([checkpoint(f, part, use_reentrant=False) for part in z.split(chunk)])

    def sample_mean(self, q: Distribution, z: Tensor, values: Tensor) -> Tensor:
        return (q.log_prob(z).exp() * values).sum(0)

    def _refuse_large(self, q: Distribution) -> None:
        states = num_states(q) ** self.num_samples
        if states > self.max_states:
            raise ValueError(
                f"Exact would enumerate {power(states)} states, more than max_states="
                f"{self.max_states}: use fewer latents or another estimator"
            )
