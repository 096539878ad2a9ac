"""Discrete latents: L categorical variables of K classes, or L bits."""

from collections.abc import Sequence

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, Independent

from ..estimators.base import base, log_softmax, one_hot
from .base import Latent


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
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return OneHotCategorical(logits=logits, validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """torch's draws; its own way to one-hot vectors cannot be vmapped."""
        return one_hot(self._categorical.sample(torch.Size(sample_shape)), self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        finite = self.logits.clamp_min(torch.finfo(self.logits.dtype).min)  # 0 times -inf is 0
        return (value * finite).sum(-1)


class _Discrete(Latent):
    discrete = True

    def interpolate(self, z0: Tensor, z1: Tensor, steps: int) -> Tensor:
        """One variable after the other changes from its value in z0 to that in z1."""
        first = self.event_shape[0]
        order = torch.arange(first, device=z0.device).reshape(
            first, *[1] * (len(self.event_shape) - 1)
        )
        changed = torch.linspace(0, first, steps, device=z0.device)
        changed = changed.reshape(-1, *[1] * z0.ndim)
        return torch.where(order < changed, z1, z0)


class Categorical(_Discrete):
    r"""L independent one-hot variables of K classes; z is [L, K].

    .. math:: \mathrm{KL}_l = \sum_k \pi_{lk} (\log \pi_{lk} - \log p_{lk})

    Args:
        latents: L.
        categories: K.
        learn_prior: train the prior's logits; uniform otherwise.
    """

    def __init__(self, latents: int = 20, categories: int = 10, learn_prior: bool = False) -> None:
        if categories < 2:
            raise ValueError(f"categories must be at least 2, got {categories}")
        super().__init__((latents, categories), latents * categories, learn_prior)
        self.latents, self.categories = latents, categories

    def distribution(self, parameters: Tensor) -> Distribution:
        # torch normalises by logits - logsumexp, which at logits of 100 leaves errors of 1e-5.
        logits = log_softmax(parameters.unflatten(-1, self.event_shape))
        categorical = OneHotCategorical(logits=logits, validate_args=False)
        return Independent(categorical, 1, validate_args=False)

    def kl(self, q: Distribution) -> Tensor:
        log_pi = base(q).logits  # normalised, so exact where a probability underflows
        log_prior = base(self.prior()).logits
        return (log_pi.exp() * (log_pi - log_prior)).sum(-1)

    def mode(self, q: Distribution) -> Tensor:
        logits = base(q).logits
        return one_hot(logits.argmax(-1), logits)

    def values(self, steps: int = 7) -> Tensor:
        codes = torch.eye(self.categories, device=self.prior_parameters.device)
        return codes.to(self.prior_parameters).unsqueeze(1).expand(-1, self.latents, -1)

    def codes(self, q: Distribution) -> Tensor:
        return base(q).probs


class Bernoulli(_Discrete):
    r"""L independent bits; z is [L].

    .. math:: \mathrm{KL}_l = \pi_l (\ell_l - m_l) - \log(1 + e^{\ell_l}) + \log(1 + e^{m_l})
              \quad \text{for logits } \ell \text{ and the prior's } m

    Args:
        latents: L.
        learn_prior: train the prior's logits; fair coins otherwise.
    """

    def __init__(self, latents: int = 200, learn_prior: bool = False) -> None:
        super().__init__((latents,), latents, learn_prior)
        self.latents = latents

    def distribution(self, parameters: Tensor) -> Distribution:
        bernoulli = td.Bernoulli(logits=parameters, validate_args=False)
        return Independent(bernoulli, 1, validate_args=False)

    def kl(self, q: Distribution) -> Tensor:
        logits, prior = base(q).logits, self.prior_parameters
        return logits.sigmoid() * (logits - prior) - F.softplus(logits) + F.softplus(prior)

    def mode(self, q: Distribution) -> Tensor:
        logits = base(q).logits
        return (logits > 0).to(logits.dtype)

    def values(self, steps: int = 7) -> Tensor:
        return self.prior_parameters.new_tensor([[0.0], [1.0]]).expand(-1, self.latents)

    def codes(self, q: Distribution) -> Tensor:
        p = base(q).probs
        return torch.stack([1 - p, p], -1)


def discrete_latent(latents: int, categories: int | None, learn_prior: bool = False) -> Latent:
    """L categorical variables, or, where `categories` is None, L bits."""
    if categories is None:
        return Bernoulli(latents, learn_prior)
    return Categorical(latents, categories, learn_prior)
