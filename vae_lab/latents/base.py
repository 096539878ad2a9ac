"""A latent: the family of q(z|x), how a network's output becomes one, its prior, its KL, and what a
z is, so that nobody else has to ask."""

import math
from contextlib import AbstractContextManager
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..arguments import PrintsArguments
from ..distributions import base, bounds, kl, parameters, wrapped
from ..seeding import seeded

ACTIVE = 0.01  # nats of mean KL above which a latent variable counts as in use
WIDTH = 3  # standard deviations of the prior, on each side of its mean, that are worth a look

Kind = Literal["numbers", "codes", "bits", "counts"]


class Latent(PrintsArguments, nn.Module):
    """The family of the posterior and of the prior.

    Both are made by :meth:`distribution` from a vector of parameters: the posterior from the
    encoder's output, the prior from zeros (standard normal, uniform) or, with `learn_prior`, from
    trained values.

    A family of numbers needs :meth:`distribution` only, if torch knows its KL, its mean and its
    variance; what it says better itself, it overrides. For codes, bits and counts begin with
    :class:`~vae_lab.latents.discrete.Discrete`.

    A latent *variable* is one component of z, of which there are L; the shape of z says how they
    lie. Each is written as one number, by :meth:`numbers`, and read by :meth:`from_numbers`.

    A fully convolutional network has such variables at each place of a grid: the family is the
    same, its z has the grid's axes in front, and all places have the prior in common. The VAE says
    which grid, by :meth:`bind`.

    Args:
        variables: the shape of z, of one place if there is a grid.
        parameter_size: the number of parameters of q for one datum, or for one place of it.
        learn_prior: train the prior's parameters.
        prior_size: their number; None: as many as those of q.

    Attributes:
        grid: the places, (h, w); () where there is no grid.
        deterministic: does q give all probability to one z.
        closed_kl: is there a closed form of the KL to the latent's own prior; else it is sampled.
        kind: what a variable's number means: any number, the name of a category, a bit, a count.
        categories: K, of which one is chosen by each variable; None where they cannot be listed.
    """

    kind: ClassVar[Kind] = "numbers"
    categories: int | None = None
    deterministic: bool = False
    closed_kl: ClassVar[bool] = True

    grid: tuple[int, ...] = ()

    def __init__(
        self,
        variables: tuple[int, ...],
        parameter_size: int,
        learn_prior: bool,
        prior_size: int | None = None,
    ) -> None:
        super().__init__()
        if min(variables) < 1:
            raise ValueError(f"latents must be at least 1, got {min(variables)}")
        self.variables = variables
        self.parameter_size = parameter_size
        self.learn_prior = learn_prior
        self.prior_size = parameter_size if prior_size is None else prior_size
        zeros = torch.zeros(self.prior_size)
        self.prior_parameters = nn.Parameter(zeros, requires_grad=learn_prior)

    def bind(self, grid: tuple[int, ...]) -> None:
        """Called by the VAE with the grid of its network, () if it has none."""
        if "grid" in vars(self) and self.grid != grid:
            raise ValueError(
                f"this {type(self).__name__} belongs to a VAE with grid {list(self.grid)}, make "
                f"another one for the grid {list(grid)}"
            )
        self.grid = grid

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one z. Setting it sets `variables`, as a latent outside of a grid may."""
        return (*self.grid, *self.variables)

    @event_shape.setter
    def event_shape(self, shape: tuple[int, ...]) -> None:
        self.variables = tuple(shape)

    @property
    def size(self) -> int:
        """The width of a flattened z."""
        return math.prod(self.event_shape)

    @property
    def width(self) -> int:
        """The width of what :meth:`embed` gives the decoder, for a datum or for each place."""
        return math.prod(self.variables)

    def embed(self, z: Tensor) -> Tensor:
        """What the decoder sees of z, [*, *E] -> [*, width], on a grid [*, h, w, width]."""
        return z.flatten(z.ndim - len(self.variables))

    def embedded(self, q: Distribution) -> Distribution | None:
        """What the decoder sees of q's z, as a distribution of its own; None where it has none.

        A q without randomness has one, a code: to train with it needs no z, which is K wide. A
        subclass with an :meth:`embed` of its own has none, unless it says so here.
        """
        return None

    @property
    def seen(self) -> Tensor:
        """Which of the variables the decoder sees, [L]; all, if nothing else is said."""
        return torch.ones(self.num_variables, dtype=torch.bool)

    @property
    def num_variables(self) -> int:
        """L, the number of latent variables."""
        return self.size

    def at_places(self, values: Tensor) -> Tensor:
        """One value for each variable, [*, L] -> [*, h, w, L of a place]; without a grid [*, L]."""
        return values.unflatten(-1, (*self.grid, -1)) if self.grid else values

    @property
    def num_places(self) -> int:
        """h * w, the places of the grid; 1 without one."""
        return math.prod(self.grid)

    def places_as_data(self, values: Tensor) -> Tensor:
        """Values of each variable, [N, L, *] -> [N * h * w, L of a place, *].

        A code, or a channel of numbers, means the same at every place, so that it is counted over
        the data and their places. Without a grid the values stay as they are.
        """
        places = self.num_places
        return values.unflatten(1, (places, -1)).flatten(0, 1) if places > 1 else values

    @property
    def num_states(self) -> float:
        """K^L, the number of values of z; infinite where they cannot be listed."""
        return math.inf if self.categories is None else self.categories**self.num_variables

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number that a variable can be; infinite where there is none."""
        return bounds(self.prior())

    def check_numbers(self, numbers: Tensor | np.ndarray) -> None:
        """Refuses numbers outside of :attr:`bounds`, of whatever shape."""
        low, high = self.bounds
        wrong = numbers[~((numbers >= low) & (numbers <= high))]
        if len(wrong):
            raise ValueError(f"z must be from {low:g} to {high:g}, got {wrong[0]:g}")

    @property
    def has_units(self) -> bool:
        """Whether numbers that are shifted and scaled are of the same family."""
        of_loc_and_scale = set(parameters(self.prior())) == {"loc", "scale"}
        return of_loc_and_scale and self.bounds == (-math.inf, math.inf)

    def prior(self, shift: Tensor | None = None) -> Distribution:
        """p(z), batch shape [].

        Args:
            shift: is added to its parameters, [*B, prior_size]; the batch shape is then [*B].
        """
        own = self.prior_parameters
        parameters = own if shift is None else own + shift
        if not self.grid:
            return self.prior_distribution(parameters)
        batch, size = parameters.shape[:-1], parameters.shape[-1]
        place = base(self.prior_distribution(parameters.view(*batch, *[1] * len(self.grid), size)))
        variables = place.batch_shape[len(batch) + len(self.grid) :]
        return self.independent(place.expand(torch.Size((*batch, *self.grid, *variables))))

    def leave_prior(self) -> None:
        """Called by the VAE whose prior is not the latent's own, which is no longer trained."""

    @property
    def factorised(self) -> "Latent":
        """A latent of the same z, of whose prior each variable has parameters of its own; itself,
        if nothing else is said."""
        return self

    def prior_distribution(self, parameters: Tensor) -> Distribution:
        """Parameters [*B, *grid, prior_size] -> a distribution of the prior's family, [*B]; that of
        q, if nothing else is said."""
        return self.distribution(parameters)

    def learn(self, parameters: Tensor) -> Distribution:
        """As :meth:`distribution`, of a batch of training [B, *grid, parameter_size], which teaches
        the latent what no gradient does."""
        return self.distribution(parameters)

    def learned(self) -> dict[str, Tensor]:
        """What :meth:`learn` has to show, for the log: numbers by name, shape [] each."""
        return {}

    def distribution(self, parameters: Tensor) -> Distribution:
        """Parameters [*B, *grid, parameter_size] -> a distribution of batch shape [*B]."""
        raise NotImplementedError

    def independent(self, variables: Distribution) -> Distribution:
        """Distributions of single variables, batch shape [*B, *V] -> that of z, [*B]."""
        return wrapped(variables, len(self.event_shape))

    def kl(self, q: Distribution) -> Tensor:
        """KL(q || prior) of each latent variable in closed form, [*B, L] or as they lie in z, in
        nats; where there is none, that of z by one draw, [*B]."""
        if self.closed_kl:
            return kl(q, self.prior())
        z = q.rsample()
        return q.log_prob(z) - self.prior().log_prob(z)

    def aggregate_kl(self, q: Distribution) -> Tensor:
        """What each datum adds to the KL of the mean of the posteriors from the prior, [B], in
        nats; for variables whose categories can be listed."""
        raise ValueError(
            f"aggregate_kl needs variables with categories, {type(self).__name__} has {self.kind}: "
            "leave it at 0"
        )

    def log_densities(self, q: Distribution, z: Tensor) -> Tensor:
        r"""The density of every z under each of K distributions, z [\*, \*E] and q of batch shape
        [K] -> [\*, K]; where the family allows without a tensor [\*, K, \*E]."""
        return q.log_prob(z.unsqueeze(z.ndim - len(self.event_shape)))

    def mode(self, q: Distribution) -> Tensor:
        """The most probable z, [*B, *E]; the mean, if nothing else is said."""
        return q.mean

    def numbers(self, z: Tensor) -> Tensor:
        """One number for each variable, z [*, *E] -> [*, L]."""
        return z.flatten(z.ndim - len(self.event_shape))

    def from_numbers(self, numbers: Tensor) -> Tensor:
        """The z that :meth:`numbers` wrote, [*, L] -> [*, *E]."""
        return numbers.unflatten(-1, self.event_shape)

    def codes(self, q: Distribution) -> Tensor | None:
        """The probability of every category, [*B, L, K]; None where they cannot be listed."""
        return None

    def log_codes(self, q: Distribution) -> Tensor | None:
        """The logarithms of :meth:`codes`, in double precision on the CPU."""
        return None

    def usage(self, q: Distribution, steps: int = 7) -> Tensor | None:
        """The probability of each of :meth:`values`, [*B, L, steps]; None for numbers, of which
        each has none."""
        return None

    def values(self, steps: int = 7) -> Tensor:
        """Values to set each variable to, to see what it does, as numbers: [steps, L].

        All categories, or `steps` values where there is no end of them.
        """
        low, high = self.range()
        return low + torch.linspace(0, 1, steps, device=low.device).unsqueeze(-1) * (high - low)

    def value_names(self, count: int) -> tuple[list[str], str]:
        """The names of so many of :meth:`values` in a picture, and that of their axis."""
        return [f"{share:.0%}" for share in torch.linspace(0, 1, count)], "of the prior's range"

    def range(self, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The least and the largest number that is worth a look, of each variable, [L] each.

        Args:
            numbers: of z that have to lie within, [N, L].
        """
        low, high = (self._from_mean(side * WIDTH) for side in (-1, 1))
        if numbers is not None:
            low, high = torch.minimum(low, numbers.amin(0)), torch.maximum(high, numbers.amax(0))
        return low, high

    @torch.no_grad()
    def _from_mean(self, deviations: Tensor | float) -> Tensor:
        """So many of the prior's standard deviations from its mean, as far as there are numbers."""
        prior = self.prior()
        return self.numbers((prior.mean + deviations * prior.stddev).clamp(*self.bounds))

    @property
    def uniform(self) -> bool:
        """Whether the prior has the same probability for all values, and so no temperature."""
        return False

    @property
    def has_temperature(self) -> bool:
        """Whether :meth:`sample` draws others at another temperature than 1."""
        return not self.uniform

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        r"""Draws from the prior at a temperature t, [count, \*E]; the same noise at every t.

        Numbers are t times as far from the prior's mean as draws of the prior are; of discrete
        variables it is :math:`p_t(k) \propto p(k)^{1/t}`, over the values that are worth a look.
        """
        prior = self.prior()
        with self._seeded(seed):
            z = prior.sample((count,))
        return (prior.mean + temperature * (z - prior.mean)).clamp(*self.bounds)

    def _seeded(self, seed: int) -> AbstractContextManager[None]:
        return seeded(seed, self.prior_parameters.device)

    def around(self, z: Tensor) -> Tensor | None:
        r"""Parameters of one distribution of the prior's family for each of K standardised z, whose
        mixture has their mean and variance, [K, \*V] -> [K, prior_size]; None where not known."""
        return None

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """A path from z0 to z1, [*B, *E] -> [steps, *B, *E]; straight, if nothing else is said."""
        t = torch.linspace(0, 1, steps, device=z0.device).reshape(-1, *[1] * z0.ndim)
        return (1 - t) * z0 + t * z1

    # What evaluation can tell faster, or at all, of families that say it.

    def natural(self, q: Distribution) -> tuple[Tensor, Tensor] | None:
        r"""The natural parameters :math:`\eta` [*B, L, P] and the log-normaliser A [*B, L] of an
        exponential family, :math:`\log q(z_l) = T(z_l) \cdot \eta_l - A_l + h(z_l)`, in double
        precision on the CPU; None of others."""
        return None

    def statistics(self, z: Tensor) -> Tensor:
        """T of z, [*, *E] -> [*, L, P], if there are natural parameters."""
        return self.numbers(z).unsqueeze(-1)

    def gap(self, q: Distribution) -> tuple[Tensor, int] | None:
        """The distance of the posteriors' mixture from the prior, from its moments only.

        Args:
            q: the posteriors of N data, batch shape [N].

        Returns:
            KL(p' || p) of the distribution p' nearest to the prior p of all that have the mixture's
            moments, in nats, and how many moments these are; None if it is not known.
        """
        return None
