"""The one contract of the library: an estimator of an expectation and of its gradient."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..aggregates import Aggregate, mean
from ..arguments import PrintsArguments
from ..distributions import base, parameters
from ..quantized import Quantized
from ..transforms import is_transformed

Integrand = Callable[[Tensor], Tensor]  # z [S, *B, *E] -> f(z) [S, *B]
Unbiased = Literal[True, "cubic f", "quadratic f", "linear f", False]


class Estimator(PrintsArguments, nn.Module):
    r"""Estimates :math:`\mathbb{E}_{z \sim q}[f(z)]` and its gradient.

    .. code-block:: python

        value = estimator(q, f)   # q: batch shape [*B], event shape [*E]
                                  # f: z [S, *B, *E] -> [S, *B]; called once, on all its points
                                  # value: [*B]

    One number for each point, and nothing else: a sum over the event's axes is f's own business.
    What f returns as bool or integers is taken as floating-point numbers. Where the estimate for a
    datum is minus infinity, as f is at a point that the data rule out, that datum has no gradient.
    NaN or plus infinity of f makes that datum's gradient NaN or infinite.

    The value is the Monte-Carlo estimate. Its gradient is this estimator's gradient for the
    parameters of q and for all that f closes over. Whatever else has to be trained (a baseline, a
    control variate) is attached with value zero, so one ordinary ``backward()`` trains
    everything, whether the caller maximises the value or minimises it.

    A subclass implements :meth:`estimate` and declares:

    Attributes:
        num_samples: S, samples of z for one datum.
        unbiased: for which f the gradient's expectation is exact: True for all, False for none.
        families: the torch.distributions whose parameters it can differentiate.
        needs_differentiable: True if it uses df/dz, so that f must be differentiable in z.
        relaxed_points: True if it evaluates f between the points of q's support.
        single_sample: True if it can differentiate the mean, of which an ELBO is made.
        multi_sample: True if it can differentiate another aggregate than the mean.
        compiles: True if it traces into one graph; else it runs eagerly inside a compiled step.
        evaluations: how often f is evaluated for one datum, in the constructor's arguments.
        source: the paper.
    """

    num_samples: int = 1
    unbiased: Unbiased  # these four may depend on an instance's arguments
    families: tuple[type[Distribution], ...]
    needs_differentiable: bool = False
    relaxed_points: bool = False
    single_sample: ClassVar[bool] = True
    multi_sample: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    evaluations: ClassVar[str] = "num_samples"
    source: ClassVar[str]

    @property
    def relaxed(self) -> bool:
        """True if it evaluates f at points that z cannot take, and does not correct for it."""
        return self.relaxed_points and self.unbiased is not True

    @property
    def below(self) -> "Estimator":
        """The estimator for the levels of latent variables below the one that this is for."""
        return self

    def forward(
        self,
        q: Distribution,
        f: Integrand,
        *,
        aggregate: Aggregate = mean,
        context: Tensor | None = None,
    ) -> Tensor:
        """The estimate of E_q[f], [*B].

        Args:
            q: the distribution whose parameters are trained.
            f: the integrand, evaluated on a stack of points.
            aggregate: how the S values become one: :func:`~vae_lab.aggregates.mean`, or
                :func:`~vae_lab.aggregates.log_mean_exp` for a multi-sample bound.
            context: what q was computed from, [*B, features]; only learned baselines look at it.

        Raises:
            ValueError: this estimator cannot differentiate q, or f returns another shape.
        """
        if not self.accepts(q):
            raise ValueError(self.refusal(q))
        if aggregate is not mean and not self.multi_sample:
            raise ValueError(
                f"{type(self).__name__} estimates the mean of f only, not a multi-sample bound; "
                f"use one of {_names(c for c in catalog() if c.multi_sample and c.accepts(q))}"
            )
        f = checked(f, q)
        if 0 in getattr(q, "batch_shape", ()):
            return self.of_no_data(q, f)
        if torch.compiler.is_compiling() and not self.compiles:
            from .compiled import run_eagerly

            return run_eagerly(self.settled, q, f, aggregate, context)
        return self.settled(q, f, aggregate, context)

    def of_no_data(self, q: Distribution, f: Integrand) -> Tensor:
        """The estimate for a batch of size 0, [*B], whose gradients are zero."""
        values = f(q.sample(torch.Size((self.num_samples,))))
        for average in self.averages():
            average(values.detach(), None)
        return values.mean(0) + sum(surrogate(p.sum()) for p in parameters(q).values())

    def averages(self) -> Iterable[nn.Module]:
        """The moving averages that each estimate moves on, together with all other processes'."""
        return ()

    def settled(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        """The estimate, without a gradient where it is minus infinity."""
        value = self.estimate(q, f, aggregate, context)
        return torch.where(value == -torch.inf, value.detach(), value)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        raise NotImplementedError

    def sample_mean(self, q: Distribution, z: Tensor, values: Tensor) -> Tensor:
        """E_q of another function, from its values [S, *B] at the points z of :meth:`estimate`.

        The first `num_samples` points are samples of q; what follows is there for the gradient.
        """
        return values[: self.num_samples].mean(0)

    @classmethod
    def accepts(cls, q: Distribution) -> bool:
        """True if this estimator can differentiate the parameters of q."""
        if Distribution in cls.families:  # or what acts like one: an episode of a game
            known = hasattr(q, "sample") and hasattr(q, "log_prob")
            return known and not isinstance(base(q), Quantized)  # whose density has no derivative
        return isinstance(base(q), cls.families)

    @classmethod
    def refusal(cls, q: Distribution) -> str:
        able = _names(other for other in catalog() if other.accepts(q))
        cure = f"; use one of {able}" if able else ", which is no distribution"
        if isinstance(base(q), Quantized):
            cure += ", or a temperature above 0 with that of a codebook"
        elif Quantized in cls.families:
            cure += ", or a latent of nearest codes, with temperature=0"
        got = type(base(q)).__name__
        return f"{cls.__name__} works with {_names(cls.families)}, got {got}{cure}"

    def density(self, q: Distribution) -> Distribution:
        """The q whose log-density f should use, where f contains log q."""
        return q


def checked(f: Integrand, q: Distribution) -> Integrand:
    """f, held to what it must return: floating-point numbers of shape [S, *B]."""
    event = getattr(q, "event_shape", None)  # an episode of a game does not say how long it is

    def values_of(z: Tensor) -> Tensor:
        values = f(z)
        if not isinstance(values, Tensor) or values.is_complex():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"f must return a tensor of real numbers, got {kind}")
        wanted = z.shape[:1] if event is None else z.shape[: z.ndim - len(event)]
        if (values.shape[:1] if event is None else values.shape) != wanted:
            raise ValueError(_wrong_shape(values.shape, wanted, z.shape))
        if values.is_floating_point():
            return values
        return values.to(z.dtype if z.is_floating_point() else torch.get_default_dtype())

    return values_of


def _wrong_shape(got: torch.Size, wanted: torch.Size, z: torch.Size) -> str:
    extra = got[len(wanted) :]
    if len(got) < len(wanted):
        cure = "leave the mean over samples and data to the estimator"
    elif got[: len(wanted)] != wanted:
        cure = "keep the leading axes of z"
    elif extra == (1,):
        cure = "a .squeeze(-1) is missing"
    else:
        cure = f"a sum over the event is missing, .sum({tuple(range(-len(extra), 0))})"
    return (
        f"f must return one number for each point, [S, *B] = {list(wanted)} for z of shape "
        f"{list(z)}, got {list(got)}: {cure}"
    )


def surrogate(term: Tensor) -> Tensor:
    """A tensor of value zero with the gradient of `term`.

    Zero also where the term is 0 times the -inf logit of a category that is ruled out.
    """
    return (_MappedSurrogate if is_transformed() else _Surrogate).apply(term)


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, term: Tensor) -> Tensor:
        return torch.zeros_like(term)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Descent(_Surrogate):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.abs()


class _Mapped(torch.autograd.Function):
    """What torch.func.grad and vmap can transform, at three times the cost of a call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(term: Tensor) -> Tensor:
        return torch.zeros_like(term)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing to keep."""


class _MappedSurrogate(_Mapped):
    backward = staticmethod(_Surrogate.backward)


class _MappedDescent(_Mapped):
    backward = staticmethod(_Descent.backward)


def descent(loss: Tensor) -> Tensor:
    """A tensor of value zero along whose gradient an optimizer always lowers `loss`.

    The caller may maximise or minimise the value that this is added to: a baseline's error must
    fall either way, so the sign of the incoming gradient is dropped and only its weight kept.
    """
    return (_MappedDescent if is_transformed() else _Descent).apply(loss)


def catalog() -> list[type[Estimator]]:
    """Every estimator of the library, in alphabetical order."""
    package = __name__.rpartition(".")[0]
    ours = {cls for cls in _subclasses(Estimator) if cls.__module__.startswith(f"{package}.")}
    public = (cls for cls in ours if not cls.__name__.startswith("_"))
    return sorted(public, key=lambda cls: cls.__name__)


def _subclasses(cls: type[Estimator]) -> Iterator[type[Estimator]]:
    for direct in cls.__subclasses__():
        yield direct
        yield from _subclasses(direct)


def _names(classes: Iterable[type]) -> str:
    return ", ".join(cls.__name__ for cls in classes)


def positive_samples(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value}")
    return value
