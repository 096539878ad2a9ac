"""Functions that the estimators with a control variate share.

A control variate c(z) is subtracted from f in the score function's credit, and the gradient of its
own expectation added back along the path of z. What it depends on is trained on the variance of
each datum's gradient, through its value c and its slope dc/dz and through nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..aggregates import Aggregate, credit
from ..distributions import per_dimension
from .base import Integrand, catalog

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]  # credit, weight, dc/dz -> g


def controlled(
    hard: Tensor, c: Tensor, dc_dz: Tensor, aggregate: Aggregate, gradient: Gradient
) -> tuple[Tensor, Tensor, Tensor]:
    """A controlled gradient g, and the derivatives of each datum's |g|^2 by c and by dc/dz.

    All are constants: what c depends on learns from the last two, and nothing else can.

    Args:
        hard: f at the samples, [S, *B].
        c: the control variate, [S, *B].
        dc_dz: its derivative by the sample, [S, *B, *E].
    """
    hard, c, dc_dz = hard.detach(), leaf(c), leaf(dc_dz)
    gain = credit(hard, c, aggregate)
    (weight,) = torch.autograd.grad(-gain.sum(), c, create_graph=True)
    g = gradient(gain, weight, dc_dz)
    by_c, by_slope = torch.autograd.grad(g.square().sum(), (c, dc_dz))
    return g.detach(), by_c, by_slope


_GRAPH = "their graph: use ScoreFunction, or RELAX without f"


def derivatives(
    total: Tensor, inputs: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The derivatives of a sum by each input, 0 for an input that it does not depend on.

    The graph of the sum is kept, so that the caller can go backward through it again.
    """
    if not total.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(
        total, inputs, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )


def slope(values: Tensor, z: Tensor, f: Integrand, create_graph: bool = True) -> Tensor:
    """df/dz at every point, [S, *B, *E], of values [S, *B]; their graph stays for the caller.

    It is 0 if f does not depend on z, for which f is asked again; a black box is refused.
    """
    df_dz = None
    if values.requires_grad:
        (df_dz,) = torch.autograd.grad(
            values.sum(), z, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    if df_dz is None and not _constant(f, z.detach()):
        where = "with z not in" if values.requires_grad else "without"
        raise ValueError(f"f must be differentiable in z, got values {where} {_GRAPH}")
    return torch.zeros_like(z) if df_dz is None else df_dz


@torch.no_grad()
def _constant(f: Integrand, z: Tensor) -> bool:
    """True if f has the same values at other points: z with shifted coordinates, zeros, ones."""
    others = z.roll(1, -1), torch.zeros_like(z), torch.ones_like(z)
    return all(torch.equal(f(z), f(other)) for other in others)


def leaf(x: Tensor) -> Tensor:
    """A constant by which derivatives are taken."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        own = ", ".join(cls.__name__ for cls in catalog() if not cls.compiles)
        raise ValueError(
            f"torch.func cannot transform the estimators that take derivatives of their own ({own}"
            "): use another one, such as ScoreFunction"
        )
    return x.detach().requires_grad_()


def number(value: float, learned: bool) -> nn.Parameter:
    """A parameter that is one number, [1]: FSDP does not shard scalars."""
    return nn.Parameter(torch.tensor([float(value)]), requires_grad=learned)


def each_datum(parameter: Tensor, q: Distribution) -> Tensor:
    """A detached copy of a number for every datum, [*B], so that each has a gradient of its own."""
    return leaf(parameter.detach().squeeze(0).expand(q.batch_shape))


def each_event(x: Tensor, q: Distribution) -> Tensor:
    """[*] -> [*, 1..], which broadcasts over q's events."""
    return x.reshape(x.shape + (1,) * len(q.event_shape))


def event_sum(x: Tensor, q: Distribution) -> Tensor:
    """[*, *E] -> [*]."""
    return per_dimension(x, q).sum(-1)


class ControlNetwork(nn.Module):
    """r(z), [S, *B, *E] -> [S, *B], or r(z, x) if there are features x [*B, F].

    Smooth, because what counts is its derivative.
    """

    def __init__(self, hidden: Sequence[int] = (100,)) -> None:
        if not hidden:
            raise ValueError("hidden must name at least one layer, got none")
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.LazyLinear(width), nn.Tanh()]
        self.network = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, q: Distribution, z: Tensor, context: Tensor | None) -> Tensor:
        inputs = per_dimension(z, q)
        if context is not None:
            features = context.detach().expand(*inputs.shape[:-1], -1)
            inputs = torch.cat([inputs, features.to(inputs)], -1)
        inputs = inputs_of(self.network, inputs, "an event (with its context)")
        return self.network(inputs).squeeze(-1).to(z.dtype)


def inputs_of(network: nn.Sequential, x: Tensor, name: str) -> Tensor:
    """x [*, F] in the network's own precision; of another F than its first it is refused."""
    first: Any = network[0]
    known = 0 if isinstance(first, nn.LazyLinear) else first.in_features
    if known and x.shape[-1] != known:
        raise ValueError(
            f"this estimator's network first met {name} of {known} numbers, got {x.shape[-1]}: "
            "make an estimator of its own for each"
        )
    return x.to(first.weight.dtype)
