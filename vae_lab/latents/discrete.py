"""Discrete latents: L categorical variables of K classes, or L bits; and what all of them share."""

import math
from typing import ClassVar

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from ..distributed import all_sum
from ..distributions import OneHotCategorical as OneHotCategorical
from ..distributions import base, like, log_softmax, one_hot, per_variable, precise
from .base import WIDTH, Kind, Latent

SPREAD = 0.7548776662466927, 0.5698402909980532  # 1 / g and 1 / g^2 for g^3 = g + 1


class Discrete(Latent):
    """The base of latents whose variables are 0, 1, 2, ...; if nothing else is said, counts.

    Attributes:
        mean_parameter: what the family calls the parameter that is its mean, if it has one.
    """

    kind: ClassVar[Kind] = "counts"
    mean_parameter: ClassVar[str | None] = None

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, math.inf if self.categories is None else self.categories - 1.0

    def mode(self, q: Distribution) -> Tensor:
        return q.mean.floor()

    def usage(self, q: Distribution, steps: int = 7) -> Tensor:
        counts = self.from_numbers(self.values(steps))  # [steps, *E]
        counts = counts.reshape(steps, *[1] * len(q.batch_shape), *self.event_shape)
        return per_variable(base(q).log_prob(counts).exp().movedim(0, -1), q, last=1)

    def values(self, steps: int = 7) -> Tensor:
        """All categories, or the counts from 0."""
        values = torch.arange(self.categories or steps, device=self.prior_parameters.device)
        return values.to(self.prior_parameters).unsqueeze(1).expand(-1, self.num_variables)

    def value_names(self, count: int) -> tuple[list[str], str]:
        return [str(value) for value in range(count)], "value"

    def range(self, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        high = self._highest()
        if numbers is not None:
            high = torch.maximum(high, numbers.amax(0))
        return torch.zeros_like(high), high

    def _highest(self) -> Tensor:
        """The largest value of each variable that the prior makes worth a look, [L]."""
        if self.categories is None:
            return self._from_mean(WIDTH).ceil()
        return self.prior_parameters.new_full((self.num_variables,), self.categories - 1)

    def sample(self, count: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        p = self.usage(self.prior(), int(self._highest().max()) + 1)  # [L, K]
        with self._seeded(seed):
            uniform = torch.rand(count, *p.shape, device=p.device)
        gumbel = -(-uniform.clamp_min(torch.finfo(p.dtype).tiny).log()).log()
        return self.from_numbers((p.log() + temperature * gumbel).argmax(-1).to(p))

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """The values nearest to the straight line."""
        return super().interpolate(z0, z1, steps).round()

    def gap(self, q: Distribution) -> tuple[Tensor, int] | None:
        if self.mean_parameter is None:
            return None
        mean = base(q).mean.mean(0)
        nearest = like(q, type(base(self.prior())), **{self.mean_parameter: mean})
        # Categories sum to one.
        return self.kl(nearest).sum(), self.num_variables * ((self.categories or 2) - 1)


class Finite(Discrete):
    """Discrete latents whose values are names, with no order among them."""

    mean_parameter = "probs"

    def codes(self, q: Distribution) -> Tensor:
        raise NotImplementedError

    def log_codes(self, q: Distribution) -> Tensor:
        raise NotImplementedError

    def usage(self, q: Distribution, steps: int = 7) -> Tensor:
        return self.codes(q)

    def aggregate_kl(self, q: Distribution) -> Tensor:
        r"""What each datum adds to the KL of the mean of the posteriors from the prior, in nats.

        .. math:: \sum_l \mathbb{E}_{q(z_l|x)}[\log \bar q(z_l) - \log p(z_l)], \qquad
                  \bar q(z_l) = \frac{1}{B} \sum_x q(z_l|x)

        The mean is over the batch of all processes, and on a grid over the places. It is the part
        of KL(q(z|x) || p(z)) that says nothing of x: the mean over the batch is the KL of
        :math:`\bar q`, and so is the gradient of that mean.

        Args:
            q: the posteriors, batch shape [B].

        Returns:
            Shape [B].

        Source: Hoffman & Johnson, *ELBO surgery*, NIPS workshop on approximate inference, 2016
        """
        codes = self.codes(q)  # [B, L, K]
        of_places = self.places_as_data(codes)  # [B * places, L of a place, K]
        count = codes.new_full((1,), len(of_places))
        total = all_sum(torch.cat([of_places.detach().sum(0).flatten(), count]))
        mean = (total[:-1] / total[-1]).view(of_places.shape[1:])
        prior = self.codes(self.prior()).unflatten(0, (self.num_places, -1))[0]
        ratio = mean.clamp_min(torch.finfo(mean.dtype).tiny).log() - prior.log()
        return (codes * ratio.repeat(self.num_places, 1)).sum((-2, -1))

    @property
    def uniform(self) -> bool:
        log_p = self.codes(self.prior()).log()  # [L, K]
        return torch.allclose(log_p, log_p[:, :1])

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """One variable after the other changes from its value in z0 to that in z1; on a grid one
        place after the other, all over it."""
        first, last = self.numbers(z0), self.numbers(z1)  # [*B, L]
        turn = self._turns().to(z0.device)
        changed = torch.linspace(0, self.num_variables, steps, device=z0.device)
        changed = changed.reshape(-1, *[1] * first.ndim)
        return self.from_numbers(torch.where(turn < changed, last, first)).to(z0)

    def _turns(self) -> Tensor:
        """Whose turn it is when on a path: each variable's place in the order, [L].

        Places take turns by a sequence whose every beginning is spread evenly over the grid.

        Source: Roberts, *The Unreasonable Effectiveness of Quasirandom Sequences*, 2018
        """
        variables = torch.arange(self.num_variables)
        if not self.grid:
            return variables
        down, across = (
            torch.arange(side, dtype=torch.float64) * step
            for side, step in zip(self.grid, SPREAD, strict=True)
        )
        order = ((down.unsqueeze(-1) + across) % 1).flatten().argsort()
        return variables.unflatten(0, (self.num_places, -1))[order].flatten().argsort()


class OneHot(Finite):
    """Discrete latents of one-hot variables; z is [L, K]."""

    kind = "codes"

    def __init__(
        self,
        latents: int,
        categories: int,
        parameter_size: int,
        learn_prior: bool,
        prior_size: int | None = None,
    ) -> None:
        if categories < 2:
            raise ValueError(f"categories must be at least 2, got {categories}")
        super().__init__((latents, categories), parameter_size, learn_prior, prior_size)
        self.latents, self.categories = latents, categories

    @property
    def num_variables(self) -> int:
        return self.size // self.event_shape[-1]

    def categorical(self, logits: Tensor) -> Distribution:
        """Logits [*B, *E], normalised or not -> a distribution of batch shape [*B]."""
        # torch normalises by logits - logsumexp, which at logits of 100 leaves errors of 1e-5.
        logits = log_softmax(logits)
        return self.independent(OneHotCategorical(logits=logits, validate_args=False))

    def prior_distribution(self, parameters: Tensor) -> Distribution:
        return self.categorical(parameters.unflatten(-1, self.variables))

    def mode(self, q: Distribution) -> Tensor:
        logits = base(q).logits
        return one_hot(logits.argmax(-1), logits)

    def numbers(self, z: Tensor) -> Tensor:
        """The category of each variable: a whole number, which is its name."""
        return z.argmax(-1).flatten(z.ndim - len(self.event_shape))

    def from_numbers(self, numbers: Tensor) -> Tensor:
        like = self.prior_parameters[: self.categories]
        return one_hot(numbers.unflatten(-1, self.event_shape[:-1]), like)

    def log_densities(self, q: Distribution, z: Tensor) -> Tensor:
        """The product of z and the logits, in double precision."""
        if self.deterministic:
            return super().log_densities(q, z)
        logits = base(q).logits.flatten(1).to(precise(z))
        finite = logits.clamp_min(torch.finfo(torch.float32).min)  # 0 times -inf is 0
        return (z.flatten(z.ndim - len(self.event_shape)).to(finite) @ finite.T).to(z)

    def codes(self, q: Distribution) -> Tensor:
        return per_variable(base(q).probs, q, last=1)

    def log_codes(self, q: Distribution) -> Tensor:
        return per_variable(base(q).logits.cpu().double(), q, last=1)

    def natural(self, q: Distribution) -> tuple[Tensor, Tensor]:
        eta = self.log_codes(q)
        return eta, torch.zeros_like(eta[..., 0])  # already normalised

    def statistics(self, z: Tensor) -> Tensor:
        return z.flatten(z.ndim - len(self.event_shape), -2)


class Categorical(OneHot):
    r"""L independent one-hot variables of K classes; z is [L, K].

    .. math:: \mathrm{KL}_l = \sum_k \pi_{lk} (\log \pi_{lk} - \log p_{lk})

    Args:
        latents: L.
        categories: K.
        learn_prior: train the prior's logits; uniform otherwise.

    A z is L rows, each with a one at its category. A posterior that is uniform has a KL of 0; the
    surer it is of a category, the nearer is its KL to log K, here log 3 = 1.0986 nats:

    >>> import torch
    >>> latent = Categorical(latents=2, categories=3)
    >>> q = latent.distribution(torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 0.0]))  # three logits each
    >>> latent.mode(q)
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    >>> latent.kl(q)
    tensor([0.0000, 1.0961])
    """

    def __init__(self, latents: int = 20, categories: int = 10, learn_prior: bool = False) -> None:
        super().__init__(latents, categories, latents * categories, learn_prior)

    def distribution(self, parameters: Tensor) -> Distribution:
        return self.categorical(parameters.unflatten(-1, self.variables))


class Bernoulli(Finite):
    r"""L independent bits; z is [L].

    .. math:: \mathrm{KL}_l = \pi_l (\ell_l - m_l) - \log(1 + e^{\ell_l}) + \log(1 + e^{m_l})
              \quad \text{for logits } \ell \text{ and the prior's } m

    Args:
        latents: L.
        learn_prior: train the prior's logits; fair coins otherwise.

    A z is L zeros and ones. A fair coin has a KL of 0; the surer a posterior is of its bit, the
    nearer is its KL to log 2 = 0.6931 nats:

    >>> import torch
    >>> latent = Bernoulli(latents=2)
    >>> q = latent.distribution(torch.tensor([0.0, 9.0]))  # a logit each
    >>> latent.mode(q)
    tensor([0., 1.])
    >>> latent.kl(q)
    tensor([0.0000, 0.6919])
    """

    kind = "bits"
    categories = 2

    def __init__(self, latents: int = 200, learn_prior: bool = False) -> None:
        super().__init__((latents,), latents, learn_prior)
        self.latents = latents

    def distribution(self, parameters: Tensor) -> Distribution:
        return self.independent(td.Bernoulli(logits=parameters, validate_args=False))

    def mode(self, q: Distribution) -> Tensor:
        logits = base(q).logits
        return (logits > 0).to(logits.dtype)

    def codes(self, q: Distribution) -> Tensor:
        p = base(q).probs
        return per_variable(torch.stack([1 - p, p], -1), q, last=1)

    def log_codes(self, q: Distribution) -> Tensor:
        eta, log_normaliser = self.natural(q)
        return torch.cat([0 * eta, eta], -1) - log_normaliser.unsqueeze(-1)

    def natural(self, q: Distribution) -> tuple[Tensor, Tensor]:
        logits = per_variable(base(q).logits.cpu().double(), q)
        return logits.unsqueeze(-1), F.softplus(logits)


def discrete_latent(latents: int, categories: int | None, learn_prior: bool = False) -> Latent:
    """L categorical variables, or, where `categories` is None, L bits."""
    if categories is None:
        return Bernoulli(latents, learn_prior)
    return Categorical(latents, categories, learn_prior)
