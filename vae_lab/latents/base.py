"""A latent: the family of q(z|x), how a network's output becomes one, its prior and its KL."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

ACTIVE = 0.01  # nats of mean KL above which a latent variable counts as in use


class Latent(nn.Module):
    """The family of the posterior and of the prior.

    Both are made by :meth:`distribution` from a vector of parameters: the posterior from the
    encoder's output, the prior from zeros (standard normal, uniform) or, with `learn_prior`, from
    trained values.

    Attributes:
        event_shape: the shape of one z.
        parameter_size: the number of parameters of q for one datum.
    """

    discrete: ClassVar[bool]

    def __init__(
        self, event_shape: tuple[int, ...], parameter_size: int, learn_prior: bool
    ) -> None:
        super().__init__()
        if min(event_shape) < 1:
            raise ValueError(f"latents must be at least 1, got {event_shape[0]}")
        self.event_shape = event_shape
        self.parameter_size = parameter_size
        self.learn_prior = learn_prior
        self.prior_parameters = nn.Parameter(torch.zeros(parameter_size), requires_grad=learn_prior)

    @property
    def size(self) -> int:
        """The width of a flattened z."""
        return torch.Size(self.event_shape).numel()

    def prior(self) -> Distribution:
        """p(z), batch shape []."""
        return self.distribution(self.prior_parameters)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Parameters [*B, parameter_size] -> a distribution of batch shape [*B]."""
        raise NotImplementedError

    def kl(self, q: Distribution) -> Tensor:
        """KL(q || prior) of each latent variable in closed form, [*B, L], in nats."""
        raise NotImplementedError

    def mode(self, q: Distribution) -> Tensor:
        """The most probable z, [*B, *E]."""
        raise NotImplementedError

    def codes(self, q: Distribution) -> Tensor | None:
        """The probability of every category, [*B, L, K]; None for continuous latents."""
        return None

    def values(self, steps: int = 7) -> Tensor:
        """What every variable can be set to, to see what it does: [V, *E].

        All categories, or `steps` values where there is no end of them.
        """
        raise NotImplementedError

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """A path from z0 to z1, [*B, *E] -> [steps, *B, *E]."""
        raise NotImplementedError
