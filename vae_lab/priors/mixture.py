"""Mixtures: of components that are learned, and of the posteriors of pseudo-inputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from ..distributions import full_precision, logsumexp
from ..networks.base import from_zero
from .base import Prior, Standardizer, at_one_place, at_places, over_places

if TYPE_CHECKING:
    from ..latents import Latent
    from ..vae import VAE

APART = 0.5  # standard deviation of the components' parameters at the start
NEAR = 0.05  # that of pseudo-inputs which start at the same datum


class Mixture(Prior):
    r"""A mixture of K distributions of the latent's own family, all of it learned.

    .. math:: p(z) = \sum_k w_k \, p(z; \theta_k)

    Of numbers it is one of diagonal Gaussians, of codes one of products of categorical
    distributions. One component is the latent's own prior with ``learn_prior``. On a grid each
    place is a draw of its own, and all places have the mixture in common. Given y, the weights and
    the components' parameters are moved by a linear map of it, which starts at zero. Of a trained
    model, the Gaussians start around draws of its posteriors. A learning rate of 1e-2 suits them.

    Args:
        components: K.

    Source: Dilokthanakul et al., *Deep Unsupervised Clustering with Gaussian Mixture Variational
    Autoencoders*, 2016, arXiv:1611.02648; Tomczak & Welling, *VAE with a VampPrior*, AISTATS 2018,
    arXiv:1705.07120, section 3.1
    """

    takes_condition = True

    def __init__(self, components: int = 100) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components

    def bind(self, latent: "Latent") -> None:
        latent = latent.factorised
        self._latent = (latent,)  # in a tuple, or it would be a part of this module
        self.units = Standardizer(latent.variables) if latent.has_units else None
        self.weights = nn.Parameter(torch.zeros(self.components))
        start = torch.zeros(self.components, latent.prior_size)
        if self.components > 1 and not start.is_meta:
            start = APART * torch.randn_like(start)
        self.parameters_of_each = nn.Parameter(start)
        if self.condition_width:
            moved = self.components * (1 + latent.prior_size)
            self.shift = from_zero(nn.Linear(self.condition_width, moved))

    @torch.no_grad()
    def meet(self, z: Tensor) -> None:
        if self.units is None:
            return
        self.units.meet(z)
        [latent] = self._latent
        rows = self.units(z).reshape(-1, *latent.variables)
        if not 1 < self.components <= len(rows):  # two that start alike would stay alike
            return
        mixed = torch.Generator().manual_seed(0)  # on a grid every place is to be among them
        some = rows[torch.randperm(len(rows), generator=mixed)[: self.components]]
        if (start := latent.around(some)) is not None:
            self.parameters_of_each.copy_(start)

    def forward(self, condition: Tensor | None) -> Distribution:
        [latent] = self._latent
        weights, parameters = self.weights, self.parameters_of_each
        if (vector := at_places(latent, condition)) is not None:
            shift = full_precision(self.shift(vector)).unflatten(-1, (self.components, -1))
            weights, parameters = weights + shift[..., 0], parameters + shift[..., 1:]
        place = at_one_place(latent)
        mixture = Components(weights, place.prior_distribution(parameters), place)
        return over_places(latent, mixture if self.units is None else self.units.undone(mixture))


class Vamp(Prior):
    r"""The variational mixture of posteriors: that of K pseudo-inputs, which are learned.

    .. math:: p(z) = \frac{1}{K} \sum_k q(z | u_k)

    The best prior of all is the mean of the posteriors of the training data; a few inputs that
    stand for them are an approximation that needs no layer of its own. They have no y: a model that
    is conditional cannot have this prior.

    To encode K inputs besides a batch is most of what a step costs. With ``encoded_per_step`` = R a
    step of training encodes R of them, in turn, and takes the posteriors of the others as they were
    at theirs, at most K / R steps ago, and before it as the latent's own prior. Only those R have a
    gradient, which is weighted by K / R: on average over the turns it is that of all. What is
    evaluated encodes them all.

    Args:
        pseudo_inputs: K.
        encoded_per_step: R, the pseudo-inputs that a step of training encodes; None: all.

    Source: Tomczak & Welling, *VAE with a VampPrior*, AISTATS 2018, arXiv:1705.07120; the turns
    are this package's.
    """

    encodes = True
    posteriors: Tensor
    turn: Tensor

    def __init__(self, pseudo_inputs: int = 500, encoded_per_step: int | None = None) -> None:
        super().__init__()
        if pseudo_inputs < 1:
            raise ValueError(f"pseudo_inputs must be at least 1, got {pseudo_inputs}")
        if encoded_per_step is not None and not 1 <= encoded_per_step <= pseudo_inputs:
            raise ValueError(
                f"encoded_per_step must be from 1 to pseudo_inputs={pseudo_inputs}, "
                f"got {encoded_per_step}"
            )
        self.pseudo_inputs = pseudo_inputs
        self.encoded_per_step = encoded_per_step

    def bind(self, latent: "Latent") -> None:
        if latent.deterministic:
            raise ValueError(
                f"prior=vamp is a mixture of posteriors, and those of {type(latent).__name__} have "
                "one z each: type prior=mixture or prior=autoregressive"
            )
        self._latent = (latent,)
        self.inputs = nn.Parameter(torch.rand(self.pseudo_inputs, *self.input_shape))
        if self.encoded_per_step is not None:
            size = (*latent.grid, latent.parameter_size)
            self.register_buffer("posteriors", torch.zeros(self.pseudo_inputs, *size))
            self.register_buffer("turn", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def start(self, inputs: Tensor) -> None:
        rows = torch.arange(self.pseudo_inputs) * len(inputs) // self.pseudo_inputs
        self.inputs.copy_(inputs[rows])
        again = rows.diff(prepend=rows[:1] - 1) == 0
        if again.any():  # two that start alike would stay alike
            noise = torch.randn(self.inputs.shape, generator=torch.Generator().manual_seed(0))
            self.inputs[again] += NEAR * noise[again].to(self.inputs)

    def of(self, vae: "VAE", condition: Tensor | None) -> Distribution:
        [latent] = self._latent
        if vae.training and torch.is_grad_enabled() and self.encoded_per_step is not None:
            q = latent.distribution(full_precision(self._in_turn(vae, self.encoded_per_step)))
        else:
            q = vae.posterior(vae.encoder(self.inputs.to(vae.dtype)))
        return Components(self.inputs.new_zeros(self.pseudo_inputs), q, latent)

    def _in_turn(self, vae: "VAE", count: int) -> Tensor:
        """The parameters of all posteriors, of which so many are new, [K, *grid, parameters]."""
        total = self.pseudo_inputs
        rows = (self.turn * count + torch.arange(count, device=self.turn.device)) % total
        new = vae.head(vae.encoder(self.inputs[rows].to(vae.dtype))).to(self.posteriors.dtype)
        known = new.detach()
        weighted = known + total / count * (new - known)
        parameters = self.posteriors.index_copy(0, rows, weighted)
        self.posteriors.index_copy_(0, rows, known)
        self.turn += 1
        return parameters


class Components(MixtureSameFamily):
    r"""torch's mixture, whose log-density needs no tensor of the shape [\*, K, \*E].

    Args:
        logits: of the weights, [*B, K].
        components: batch shape [*B, K].
        latent: whose z these are distributions of.
    """

    def __init__(self, logits: Tensor, components: Distribution, latent: "Latent") -> None:
        self._of = logits, components, latent
        weights = Categorical(logits=full_precision(logits), validate_args=False)
        super().__init__(weights, components, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "Components":
        """As many independent ones, which are all alike."""
        alike = Components(*self._of)
        super().expand(torch.Size(batch_shape), alike)
        return alike

    def log_prob(self, value: Tensor) -> Tensor:
        logits, components, latent = self._of
        if logits.ndim > 1:
            return super().log_prob(value)
        each = latent.log_densities(components, value)
        return logsumexp(each + full_precision(logits).log_softmax(-1))
