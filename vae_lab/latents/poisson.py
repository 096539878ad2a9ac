"""Counts."""

import torch.distributions as td
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import base, log_rate, per_variable, poisson_kl
from .discrete import Discrete


class Poisson(Discrete):
    r"""L independent counts, :math:`q(z|x) = \text{Poisson}(\lambda(x))`; z is [L].

    The parameters are log-rates; zeros give a prior of rate 1.

    .. math:: \mathrm{KL}_l = \lambda_l (\log \lambda_l - \log r_l) - \lambda_l + r_l
              \quad \text{for the prior's rate } r

    Args:
        latents: L.
        learn_prior: train the prior's log-rates.

    A z is L whole numbers, with no largest one. A posterior of the prior's rate has a KL of 0:

    >>> import torch
    >>> latent = Poisson(latents=2)
    >>> q = latent.distribution(torch.tensor([1.0, 4.5]).log())  # a log-rate each
    >>> latent.mode(q)
    tensor([1., 4.])
    >>> latent.kl(q)
    tensor([0.0000, 3.2683])
    """

    mean_parameter = "rate"

    def __init__(self, latents: int = 64, learn_prior: bool = False) -> None:
        super().__init__((latents,), latents, learn_prior)
        self.latents = latents

    def distribution(self, parameters: Tensor) -> Distribution:
        return self.independent(td.Poisson(parameters.exp(), validate_args=False))

    def kl(self, q: Distribution) -> Tensor:
        # The prior's rate itself may have underflowed.
        return per_variable(poisson_kl(base(q).rate, self.prior_parameters), q)

    def natural(self, q: Distribution) -> tuple[Tensor, Tensor]:
        rate = per_variable(base(q).rate.cpu().double(), q)
        return log_rate(rate).unsqueeze(-1), rate
