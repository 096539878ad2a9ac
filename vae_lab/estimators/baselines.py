"""Baselines of the score function: what f at a sample is compared with.

A baseline answers with a counterfactual c_s for every sample: a guess of f(z_s) that does not
depend on z_s, so that subtracting it leaves the gradient's expectation alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..aggregates import difference, log_mean_exp_of_others, mean_of_others
from ..arguments import PrintsArguments
from ..distributed import all_sum
from .control import inputs_of


class Baseline(PrintsArguments, nn.Module):
    """values [S, *B], context [*B, features] -> counterfactuals [S, *B] and own loss [*B]."""

    least_samples = 1

    def forward(self, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Zero(Baseline):
    """No baseline."""

    def forward(self, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(values), values.new_zeros(())


class LeaveOneOut(Baseline):
    r"""The mean of the datum's other samples, :math:`\frac{1}{S-1} \sum_{j \neq s} f_j`."""

    least_samples = 2

    def forward(self, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return mean_of_others(values), values.new_zeros(())


class LeaveOneOutArithmetic(Baseline):
    r"""The other samples' :math:`\log \frac{1}{S-1} \sum_{j \neq s} \exp f_j`, for a bound.

    The bound without sample s, so VIMCO with the arithmetic mean of the weights; `leave_one_out`
    takes their geometric mean.
    """

    least_samples = 2

    def forward(self, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return log_mean_exp_of_others(values), values.new_zeros(())


class MovingAverage(Baseline):
    r"""The average of f over past batches, :math:`a \leftarrow \rho a + (1 - \rho) \bar f`.

    The average in use never contains the present batch. It starts at zero and is divided by
    :math:`1 - \rho^t`, as Adam's moments are. It moves in training mode only, over all processes.
    """

    average: Tensor
    updates: Tensor

    def __init__(self, decay: float = 0.95) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        super().__init__()
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        average, updates = self.average, self.updates
        if torch.compiler.is_compiling():
            from .compiled import saved

            average, updates = saved(torch.stack([average, updates])).unbind()
        weight = (1 - self.decay**updates).clamp_min(1 - self.decay)
        guess = (average / weight).to(values.dtype)
        if self.training:
            self._update(average, updates, values)
        return guess.expand_as(values), values.new_zeros(())

    @torch.no_grad()
    def _update(self, average: Tensor, updates: Tensor, values: Tensor) -> None:
        """Moves on by the mean of what is finite, if anything is."""
        kept = values.isfinite()
        total = all_sum(torch.stack([values.where(kept, 0.0).sum(), kept.sum().to(values.dtype)]))
        moved = average.lerp((total[0] / total[1]).to(average), 1 - self.decay)
        some = total[1] > 0
        self.average.copy_(torch.where(some, moved, average))
        self.updates.copy_(updates + some)


class Learned(Baseline):
    r"""A network's guess of f from the features of the datum, above a moving average.

    .. math:: c(x) = a + b_\psi(x), \qquad \text{loss} = \tfrac{1}{S} \sum_s (f_s - c(x))^2

    Source: Mnih & Gregor, *Neural Variational Inference and Learning in Belief Networks*, ICML
    2014, arXiv:1402.0030
    """

    def __init__(self, hidden: Sequence[int] = (100,)) -> None:
        super().__init__()
        self.hidden = hidden
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.LazyLinear(width), nn.Tanh()]
        self.network = nn.Sequential(*layers, nn.LazyLinear(1))
        self.average = MovingAverage()

    def forward(self, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is None:
            raise ValueError(
                "a learned baseline needs the datum's features: estimator(q, f, context=features)"
            )
        average, _ = self.average(values, None)
        features = inputs_of(self.network, context.detach(), "a context")
        guess = average + self.network(features).squeeze(-1).to(values.dtype)  # [S, *B]
        return guess.detach(), difference(values, guess).square().mean(0)


BASELINES: dict[str, type[Baseline]] = {
    "none": Zero,
    "moving_average": MovingAverage,
    "learned": Learned,
    "leave_one_out": LeaveOneOut,
    "leave_one_out_arithmetic": LeaveOneOutArithmetic,
}
