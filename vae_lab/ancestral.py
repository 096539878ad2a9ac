"""Normals that are drawn one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import ClassVar, Self, TypeVar

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Normal, constraints

from .distributions import frozen, full_precision, normal

Part = TypeVar("Part")


class Ancestral(Distribution):
    r"""Vectors of normals, each drawn given the one before; z is all of them in a row.

    .. math:: \log q(z) = \log \mathcal{N}(z_1; \mu, \sigma^2)
              + \sum_i \log \mathcal{N}(z_{i+1}; \mu_i(z_i), \sigma_i^2(z_i))

    The mean is that of each vector given the mean of the one before: where draws are around, and
    not their average. The variance is likewise what is left of it then.

    Args:
        loc: mu, [*B, D of the first vector].
        scale: sigma, likewise.
        networks: of each vector but the last one, z_i [*, D] -> the means and log sigmas of the
            next one, [*, 2 D of that].
        sizes: D of each vector, as they are drawn.
        last_first: they lie in z from the last to the first.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True
    variable_shape = Size()  # of one variable: z is several of them

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        networks: nn.ModuleList,
        sizes: Sequence[int],
        last_first: bool = False,
    ) -> None:
        super().__init__(loc.shape[:-1], Size([sum(sizes)]), validate_args=False)
        self.loc, self.scale, self.networks = loc, scale, networks
        self.sizes, self.last_first = sizes, last_first

    @property
    def mean(self) -> Tensor:
        return self._joined(z for _, z in self._in_turn(lambda given: given.loc))

    @property
    def variance(self) -> Tensor:
        return self._joined(given.variance for given, _ in self._in_turn(lambda given: given.loc))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._joined(z for _, z in self._in_turn(Normal.rsample, sample_shape))

    def tempered(self, temperature: float, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, each of them so many times as far from its own mean; of the same noise at all
        temperatures."""

        def drawn(given: Normal) -> Tensor:
            return given.loc + temperature * (given.rsample() - given.loc)

        return self._joined(z for _, z in self._in_turn(drawn, sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        first, others = self.apart(value)
        return self._first.log_prob(first).sum(-1) + others

    def apart(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The first vector of z [*, D], and the log-density of the others given it, [*], in which
        neither loc nor scale is."""
        parts = iter(self._order(value.split(self._order(self.sizes), -1)))
        (_, first), *others = self._in_turn(lambda _: next(parts))
        return first, torch.stack([given.log_prob(z).sum(-1) for given, z in others]).sum(0)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Self:
        return self.mapped(lambda parameter: parameter.expand(*batch_shape, -1))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with a function of each of its parameters, [*B, D]."""
        other = copy(self)
        other.loc, other.scale = function(self.loc), function(self.scale)
        other._batch_shape = other.loc.shape[:-1]
        return other

    def detach(self) -> Self:
        """The same, of whose parameters none has a gradient, the networks' neither."""
        constant = self.mapped(Tensor.detach)
        constant.networks = frozen(self.networks)
        return constant

    @property
    def _first(self) -> Normal:
        return Normal(self.loc, self.scale, validate_args=False)

    def _in_turn(
        self, choose: Callable[[Normal], Tensor], sample_shape: Sequence[int] = ()
    ) -> Iterator[tuple[Normal, Tensor]]:
        """Each vector's distribution, given what was chosen of the one before, and what is of its
        own."""
        given = self._first.expand(Size([*sample_shape, *self.loc.shape]))
        yield given, (z := choose(given))
        for network in self.networks:
            given = normal(full_precision(network(z)))
            yield given, (z := choose(given))

    def _joined(self, parts: Iterable[Tensor]) -> Tensor:
        return torch.cat(self._order([*parts]), -1)

    def _order(self, parts: Sequence[Part]) -> list[Part]:
        """From the order in which they are drawn to that in z, and back."""
        return [*reversed(parts)] if self.last_first else [*parts]
