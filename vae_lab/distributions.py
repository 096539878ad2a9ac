"""Functions of a distribution, whatever its family. Imports nothing of the library.

A distribution is one of torch's, in any number of `Independent` wrappers, or an object of one's own
with `sample`, `log_prob` and the two shapes. Such an object says itself what cannot be read off its
parameters: it has a method `detach()` if it can be had with constant parameters.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeVar

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence

LOG_SCALES = -40.0, 10.0

Module = TypeVar("Module", bound=nn.Module)


class OneHotCategorical(td.OneHotCategorical):
    r"""torch's distribution with :math:`\log q(z) = \sum_k z_k \log \pi_k`.

    The same at every one-hot z, but also defined between them and differentiable in z, which
    relaxed and straight-through samples need inside a multi-sample bound.
    """

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        # torch's own validates the categorical inside in any case: a wait for the device a step.
        self._categorical = td.Categorical(probs, logits, validate_args)
        shapes = self._categorical.batch_shape, self._categorical.param_shape[-1:]
        Distribution.__init__(self, *shapes, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "OneHotCategorical":
        return super().expand(torch.Size(batch_shape), type(self).__new__(type(self)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """torch's draws; its own way to one-hot vectors cannot be vmapped."""
        return one_hot(self._categorical.sample(torch.Size(sample_shape)), self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        finite = self.logits.clamp_min(torch.finfo(self.logits.dtype).min)  # 0 times -inf is 0
        return (value * finite).sum(-1)


class MultivariateNormal(td.MultivariateNormal):
    """torch's distribution, which is one of D variables that depend on each other."""

    variable_shape = torch.Size()


def base(q: Distribution) -> Any:
    """The distribution inside any number of ``Independent`` wrappers; whose family is not typed."""
    while isinstance(q, Independent):
        q = q.base_dist
    return q


def like(
    q: Distribution, family: Callable[..., Distribution], **parameters: Tensor
) -> Distribution:
    """A distribution of another family or other parameters, with the event dimensions of q."""
    return wrapped(family(**parameters, validate_args=False), len(q.event_shape))


def wrapped(inner: Distribution, event_dims: int) -> Distribution:
    """A distribution whose last axes, `event_dims` in all, are one event."""
    extra = event_dims - len(inner.event_shape)
    return Independent(inner, extra, validate_args=False) if extra else inner


def mapped(q: Distribution, function: Callable[[Tensor], Tensor]) -> Distribution:
    """A distribution of the same family, with a function of each of q's parameters.

    One of one's own may have a method `mapped` for it.
    """
    inner = base(q)
    if hasattr(inner, "mapped"):
        return wrapped(inner.mapped(function), len(q.event_shape))
    return like(q, type(base(q)), **{name: function(p) for name, p in parameters(q).items()})


def detach(q: Distribution) -> Distribution:
    """The same distribution, with constant parameters; one of one's own answers for itself."""
    inner = base(q)
    if hasattr(inner, "detach"):
        return wrapped(inner.detach(), len(q.event_shape))
    return mapped(q, Tensor.detach)


def frozen(module: Module) -> Module:
    """A view of a module whose parameters are constant."""
    view = copy(module)
    own = module._parameters.items()
    constant: dict[str, Any] = {name: None if p is None else p.detach() for name, p in own}
    view._parameters = constant
    view._modules = {name: None if m is None else frozen(m) for name, m in module._modules.items()}
    return view


def can_detach(q: Distribution) -> bool:
    """Whether :func:`detach` can copy q, by q's own `detach()` or by its named parameters alone."""
    inner = base(q)  # transforms and temperatures are not among the parameters
    named = bool(_names(inner)) and not hasattr(inner, "temperature")
    return hasattr(inner, "detach") or named


def parameters(q: Distribution) -> dict[str, Tensor]:
    """The parameters of q by name: the logits where torch knows logits and probabilities."""
    inner = base(q)
    names = _names(inner) - {"covariance_matrix", "precision_matrix"}
    if "logits" in names:
        names.discard("probs")
    return {name: getattr(inner, name) for name in sorted(names)}


def _names(inner: Any) -> set[str]:
    try:
        return set(inner.arg_constraints)
    except (AttributeError, NotImplementedError):  # one of one's own need not name any
        return set()


def bounds(q: Distribution) -> tuple[float, float]:
    """The least and the largest number that a variable of q can be, or infinity."""
    support = base(q).support
    low = getattr(support, "lower_bound", -math.inf)
    return float(low), float(getattr(support, "upper_bound", math.inf))


def per_dimension(x: Tensor, q: Distribution) -> Tensor:
    """x with the event of q as one last axis, [*, *E] -> [*, D]."""
    return x.reshape(*x.shape[: x.ndim - len(q.event_shape)], q.event_shape.numel())


def per_variable(x: Tensor, q: Distribution, last: int = 0) -> Tensor:
    """x with the variables of q as one axis, [*B, *V, *] -> [*B, L, *].

    Args:
        last: how many axes x has after those of the variables.
    """
    batch = len(q.batch_shape)
    return x.flatten(batch, x.ndim - 1 - last) if x.ndim - last > batch else x.unsqueeze(batch)


def num_states(q: Distribution) -> int:
    """The number of points of q's support, for one element of its batch."""
    inner = base(q)
    variables = q.event_shape.numel() // inner.event_shape.numel()
    return len(inner.enumerate_support(expand=False)) ** variables


def support(q: Distribution) -> Tensor:
    """Every point of q's support, [states, *B, *E]."""
    inner = base(q)
    values = inner.enumerate_support(expand=False)  # [K, 1.., *event of one variable]
    values = values.reshape(len(values), *inner.event_shape)
    variables = q.event_shape.numel() // inner.event_shape.numel()
    states = torch.arange(len(values) ** variables, device=values.device)
    place = len(values) ** torch.arange(variables - 1, -1, -1, device=values.device)
    digits = states.unsqueeze(-1) // place % len(values)  # [states, variables]
    z = values[digits].reshape(-1, *[1] * len(q.batch_shape), *q.event_shape)
    return z.expand(-1, *q.batch_shape, *q.event_shape)


def power(number: float) -> str:
    """A count for a message, which may have thousands of digits or be infinite."""
    short = number < 10**6 or number == math.inf
    return f"{number}" if short else f"10^{int(math.log10(number))}"


def kl(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) of each variable in closed form, [*B, L], in nats.

    Of pairs that are not among :data:`KL` it is torch's, to which `register_kl` adds.

    Raises:
        NotImplementedError: no closed form is known.
    """
    inner = base(q), base(p)
    for (family, of_prior), formula in KL.items():
        if isinstance(inner[0], family) and isinstance(inner[1], of_prior):
            return per_variable(formula(*inner), q)
    return per_variable(kl_divergence(*inner), q)


def _normal_kl(q: td.Normal, p: td.Normal) -> Tensor:
    # torch's own takes the logarithm of sigma**2, which underflows long before sigma does.
    ratio = q.scale / p.scale
    distance = (q.loc - p.loc) / p.scale
    return 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()


def _correlated_kl(q: td.MultivariateNormal, p: td.Normal) -> Tensor:
    """By the chain rule: of each q(z_d | z_<d), whose standard deviation is the root's diagonal."""
    root = q.scale_tril
    conditional, variance = root.diagonal(dim1=-2, dim2=-1), root.square().sum(-1)
    squares = (variance + (q.loc - p.loc).square()) / p.scale.square()
    return 0.5 * (squares - 1) - (conditional / p.scale).log()


def _categorical_kl(q: td.OneHotCategorical, p: td.OneHotCategorical) -> Tensor:
    log_pi = q.logits  # normalised, so exact where a probability underflows
    return (log_pi.exp() * (log_pi - p.logits)).sum(-1)


def _bernoulli_kl(q: td.Bernoulli, p: td.Bernoulli) -> Tensor:
    return q.logits.sigmoid() * (q.logits - p.logits) - F.softplus(q.logits) + F.softplus(p.logits)


def _poisson_kl(q: td.Poisson, p: td.Poisson) -> Tensor:
    return poisson_kl(q.rate, log_rate(p.rate))


def poisson_kl(rate: Tensor, log_prior: Tensor) -> Tensor:
    """The KL of Poisson distributions, from the prior's log-rate."""
    return rate * (log_rate(rate) - log_prior - 1) + log_prior.exp()


def normal(parameters: Tensor) -> td.Normal:
    """The normals [*, D] of means and log sigmas in a row, [*, 2 D]; log sigma is kept within
    [-40, 10], so that nothing overflows."""
    mean, log_scale = parameters.chunk(2, -1)
    return td.Normal(mean, log_scale.clamp(*LOG_SCALES).exp(), validate_args=False)


def log_rate(rate: Tensor) -> Tensor:
    """A logarithm that is finite at a rate of 0, as 0 log 0 = 0."""
    return rate.clamp_min(torch.finfo(rate.dtype).tiny).log()


# Formulas that are exact where torch's own round or underflow.
KL: dict[tuple[type[Distribution], type[Distribution]], Callable[[Any, Any], Tensor]] = {
    (td.Normal, td.Normal): _normal_kl,
    (td.MultivariateNormal, td.Normal): _correlated_kl,
    (td.OneHotCategorical, td.OneHotCategorical): _categorical_kl,
    (td.Bernoulli, td.Bernoulli): _bernoulli_kl,
    (td.Poisson, td.Poisson): _poisson_kl,
}


def full_precision(x: Tensor) -> Tensor:
    """x in at least float32: a relaxation at a small temperature does not survive 16 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def precise(x: Tensor) -> torch.dtype:
    """The most precise type that there is where x is."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """[*] -> [*, K], of the type and the K of `like`; zeros, where there is no such category.

    F.one_hot would look at the indices, and to compare with all categories takes ten times as long.
    """
    named = index.nan_to_num(-1.0) if index.is_floating_point() else index
    name = named.long()
    known = (name >= 0) & (name < like.shape[-1]) & (name == named)
    zeros = like.new_zeros(*index.shape, like.shape[-1])
    ones = known.unsqueeze(-1).to(like.dtype)
    return zeros.scatter(-1, name.where(known, 0).unsqueeze(-1), ones)


def softmax(x: Tensor) -> Tensor:
    """Over the last axis."""
    return _over_categories(torch.softmax, x)


def log_softmax(x: Tensor) -> Tensor:
    """Over the last axis."""
    return _over_categories(torch.log_softmax, x)


def logsumexp(x: Tensor) -> Tensor:
    """Over the last axis.

    Where they are far apart, torch's own spends ten times as long on powers that are next to 0.
    """
    largest, at = x.max(-1, keepdim=True)
    found = (x - log_softmax(x)).gather(-1, at)
    return torch.where(largest.isinf(), largest, found).squeeze(-1)


def _over_categories(function: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """Applies a function along the last axis, for few categories on a CPU by way of the first.

    With fewer than 16 categories the CPU then needs a tenth of the time.
    """
    if x.shape[-1] < 16 and x.device.type == "cpu":
        return function(x.movedim(-1, 0), 0).movedim(0, -1)
    return function(x, -1)
