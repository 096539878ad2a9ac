"""Normalizing flows, whose networks are zuko's."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints

from .distributions import frozen
from .networks.base import from_zero
from .optional import needs

Kind = Literal["coupling", "autoregressive"]


def network(kind: Kind, size: int, transforms: int, hidden: Sequence[int], context: int = 0) -> Any:
    """Affine transformations in a row of vectors of this size, given a context or nothing; at the
    start each leaves its vector as it is."""
    validates = Distribution._validate_args  # zuko sets it for all distributions of the process
    try:
        with needs("flows", __name__):
            from zuko.flows import MAF, RealNVP
    finally:
        Distribution.set_default_validate_args(validates)
    family = RealNVP if kind == "coupling" else MAF
    flow: Any = family(size, context, transforms=transforms, hidden_features=hidden)
    for part in flow.modules():
        if isinstance(layers := getattr(part, "hyper", None), nn.Sequential):
            from_zero(layers[-1])
    return flow


class Pushed(Distribution):
    r"""Draws of a diagonal normal, moved by an invertible network.

    .. math:: z = f(u; c), \qquad
              \log q(z) = \log \mathcal{N}(u; \mu, \sigma^2) - \log |\det \partial f / \partial u|

    Its mean is :math:`f(\mu; c)`, which is where most draws are around, and not their average.

    The last draw is remembered with its u, so that its density needs no inverse, which takes an
    autoregressive network as many passes as z has numbers. Of a z that is constant while the
    parameters have a gradient it is computed anew.

    Args:
        loc: mu, [*B, D].
        scale: sigma, [*B, D].
        context: c, [*B, C].
        flow: a network of :func:`network`, whose f maps u to z.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "context": constraints.real_vector,
    }
    has_rsample = True
    variable_shape = Size()  # of one variable: z is D of them

    def __init__(self, loc: Tensor, scale: Tensor, context: Tensor, flow: Any) -> None:
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        self.loc, self.scale, self.context, self.flow = loc, scale, context, flow
        self._last: tuple[Tensor, Tensor] | None = None  # z and log q(z)

    @property
    def _base(self) -> Distribution:
        return Independent(Normal(self.loc, self.scale, validate_args=False), 1, False)

    @property
    def mean(self) -> Tensor:
        found: Tensor = self.flow.transform(self.context)(self.loc)
        return found

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        base = self._base
        u = base.rsample(Size(sample_shape))
        z, log_det = self.flow.transform(self.context).call_and_ladj(u)
        self._last = z, base.log_prob(u) - log_det
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        constant = torch.is_grad_enabled() and not value.requires_grad
        if self._last is not None and value is self._last[0] and not constant:
            return self._last[1]
        transform = self.flow.transform(self.context)
        u = transform.inv(value)
        return self._base.log_prob(u) - transform.log_abs_det_jacobian(u, value)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Pushed":
        """The same with a function of each of its parameters, [*B, *]."""
        loc, scale, context = map(function, (self.loc, self.scale, self.context))
        return Pushed(loc, scale, context, self.flow)

    def detach(self) -> "Pushed":
        """The same, of whose parameters none has a gradient, the network's neither."""
        constant = self.mapped(Tensor.detach)
        constant.flow = frozen(self.flow)
        return constant
