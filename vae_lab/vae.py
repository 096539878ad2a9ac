"""The generative model p(z) p(x|z) and its recognition model q(z|x). No Lightning in it."""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .dense import Dense
from .distributions import full_precision, per_variable
from .inputs import Array, Shape, as_data, as_floats, as_tensor, check_count
from .latents import Latent
from .networks.base import check_shape, grid
from .priors import Prior
from .priors.base import bound, check_shapes
from .storage.keeping import Pretrained

if TYPE_CHECKING:
    from .estimators import Estimator
    from .likelihoods import Likelihood
    from .networks import Network
    from .objectives import Objective, Terms

KL_SAMPLES = 16  # of z, for a KL without a closed form


class Bound(NamedTuple):
    """The ELBO and what it was made of, in nats."""

    elbo: Tensor  # [B]
    reconstruction: Tensor  # E_q log p(x|z), [B]
    kl: Tensor  # of each latent variable, [B, L]; equal shares, where only their sum is known
    q: Distribution  # batch shape [B]


class Level(NamedTuple):
    """One group of latent variables, given those above it. A VAE has one."""

    q: Distribution
    p: Callable[[], Distribution]
    kl: Callable[[], Tensor] | None  # of each variable, [*B, L]; None: it has no closed form
    context: Tensor  # what q was computed from, [*B, F]
    below: Callable[[Tensor], "Level | Tensor"]  # z -> the next level, or log p(x|z) after the last
    aggregate_kl: Callable[[], Tensor] | None = None  # of the mean of q, each datum's part, [*B]


class VAE(Pretrained, nn.Module):
    r"""A variational autoencoder: encoder, latent, decoder, likelihood.

    .. code-block:: text

        x -> encoder -> features -> head -> q(z|x)      z -> decoder -> parameters of p(x|z)

    Data are floats in the likelihood's range, tensors ``[B, *X]`` or numpy arrays, which take the
    model's type and device. Images are data of the shape [C, H, W].

    Args:
        shape: of one datum, ``(*X)``; of an image (C, H, W).
        network: makes the encoder and the decoder; see :mod:`vae_lab.networks`.
        latent: the family of q and of the prior; see :mod:`vae_lab.latents`.
        likelihood: p(x|z); see :mod:`vae_lab.likelihoods`.
        prior: p(z), to which the KL is sampled; see :mod:`vae_lab.priors`. None: the latent's own,
            to which it has a closed form.
    """

    def __init__(
        self,
        shape: Shape,
        network: "Network",
        latent: Latent,
        likelihood: "Likelihood",
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        check_shape(shape)
        self.shape = tuple(shape)
        self.output_shape = likelihood.bind(self.shape)
        self.network = network
        self.encoder = network.encoder(likelihood.input_shape(self.shape))
        latent.bind(grid(network, self.shape))
        self.head = Dense(self.encoder.features, latent.parameter_size)
        self.latent = latent
        self.decoder = network.decoder(latent.width, self.output_shape)
        bias = (self.output_shape[0], 1, 1) if latent.grid else self.output_shape
        self.output_bias = nn.Parameter(torch.zeros(bias))
        self.likelihood = likelihood
        self.prior = None
        if prior is not None:
            self.prior = bound(prior, latent, likelihood.input_shape(self.shape))
            check_shapes(prior, prior.of(self, None), latent)

    def at(self, *shape: int) -> "VAE":
        """The same model for pictures of another size; it shares all weights and modes.

        .. code-block:: python

            vae.at(3, 256, 256).reconstruct(x)

        Args:
            shape: of one picture, (C, H, W).

        Raises:
            ValueError: the network is not fully convolutional, or C is another.
        """
        if not self.latent.grid:
            raise ValueError(
                f"{type(self.network).__name__} takes data of shape {list(self.shape)} only: train "
                "with a fully convolutional network, such as Grid, for pictures of any size"
            )
        check_shape(shape)
        if len(shape) != 3 or shape[0] != self.shape[0]:
            raise ValueError(f"shape must be [{self.shape[0]}, H, W], got {list(shape)}")
        other = copy(self)
        other._modules = dict(self._modules)
        other.shape, other.latent = tuple(shape), copy(self.latent)
        other.output_shape = self.likelihood.bind(other.shape)
        del other.latent.grid  # of this copy: it is bound anew
        other.latent.bind(grid(self.network, other.shape))
        return other

    @property
    def device(self) -> torch.device:
        """The device of the weights, where the data has to be."""
        return self.output_bias.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the networks compute."""
        return self.output_bias.dtype

    def forward(
        self,
        x: Array,
        estimator: "Estimator | None" = None,
        objective: "Objective | None" = None,
    ) -> "Terms":
        """The ELBO of x, each term [B] and in nats, to be maximised; or another objective of it.

        The same as `objective(vae, estimator, x)`, through the door at which torch's wrappers wait
        (`DistributedDataParallel(vae)(x)`, `torch.compile(vae)(x)`).

        Args:
            estimator: of its gradient. None: one without bias, which is reparameterised where q can
                be, and else the score function with four samples.
            objective: None: :class:`vae_lab.objectives.ELBO`.
        """
        from .objectives import ELBO

        for part in (estimator, objective):
            if part is not None and not callable(part):
                raise ValueError(f"pass an object such as Reparameterization(), got {part!r}")
        return (objective or ELBO())(self, estimator or self._estimator(), x)

    def _estimator(self) -> "Estimator":
        from .estimators import Reparameterization, ScoreFunction

        return Reparameterization() if self.latent.prior().has_rsample else ScoreFunction(4)

    def images(self, x: Array, first_only: bool = False) -> Tensor:
        """x as the model takes it: a tensor of this shape, of floats in the likelihood's range.

        Args:
            first_only: look at the values of the first batch only. A look at them waits for the
                device, and none is taken inside a compiled function.

        Raises:
            ValueError: x is something else; one line that says what to type.
        """
        x = as_data(x, self.shape, self, any_size=bool(self.latent.grid))
        look = self.likelihood.meet if first_only else self.likelihood.inspect
        look(x)
        return x

    def features(self, x: Tensor) -> Tensor:
        """The encoder's of x [B, *X], [B, F]; of a fully convolutional one [B, h, w, F]."""
        return self.encoder(self.likelihood.inputs(x).to(self.dtype))

    def posterior(self, features: Tensor) -> Distribution:
        """The encoder's features -> q(z|x), batch shape [B]."""
        width = self.head.in_features
        if features.shape[-1:] != (width,):
            raise ValueError(
                f"features must have the shape [B, {width}], got {list(features.shape)}"
            )
        return self.latent.distribution(full_precision(self.head(features)))

    def encode(self, x: Array) -> Distribution:
        """x [B, *X] -> q(z|x), batch shape [B]."""
        x = as_data(x, self.shape, self, any_size=bool(self.latent.grid))
        return self.posterior(self.features(x))

    def p_z(self) -> Distribution:
        """The prior p(z), batch shape []."""
        if self.prior is None:
            return self.latent.prior()
        p = self.prior.of(self, None)
        if p.event_shape != self.latent.event_shape:
            raise ValueError(
                f"the prior is one of z of shape {list(p.event_shape)}, pictures of this size have "
                f"{list(self.latent.event_shape)}: they can be encoded and decoded only"
            )
        return p

    def kl(self, q: Distribution, z: Tensor | None = None) -> Tensor:
        """KL(q || p(z)) of each latent variable, [*B, L], in nats.

        To the latent's own prior in closed form. To another one it is sampled, and only the sum
        over the variables is known, of which each has an equal share.

        Args:
            z: draws of q, [S, *B, *E], for a KL that is sampled; None: 16.
        """
        if self.prior is None:
            return per_variable(self.latent.kl(q), q)
        variables = self.latent.num_variables
        if not q.batch_shape.numel():  # of which torch sums no log-densities
            return self.output_bias.new_zeros(*q.batch_shape, variables)
        z = q.sample((KL_SAMPLES,)) if z is None else z
        kl = (q.log_prob(z) - self.p_z().log_prob(z)).mean(0)
        return kl.unsqueeze(-1).expand(*kl.shape, variables) / variables

    def infer(self, x: Tensor) -> Level:
        """x [B, *X] -> the level from which an objective starts, batch shape [B]."""
        features = self.features(x)
        q = self.posterior(features)
        kl = aggregate_kl = None
        if self.prior is None:
            kl, aggregate_kl = partial(self.kl, q), partial(self.latent.aggregate_kl, q)
        if self.latent.grid:
            features = features.flatten(1, -2).mean(1)
        return Level(q, self.p_z, kl, features, lambda z: self.log_px_z(x, z), aggregate_kl)

    def decode(self, z: Array) -> Tensor:
        """z [*, *E] -> the likelihood's parameters [*, *P]."""
        z = as_tensor("z", z, like=self)
        event = self.latent.event_shape
        leading = z.shape[: z.ndim - len(event)]
        if z.shape != (*leading, *event):
            raise ValueError(f"z must have a shape that ends in {list(event)}, got {list(z.shape)}")
        z = z.to(self.dtype)  # sampled in float32 also where the weights are not
        decoded = self.decoder(self.latent.embed(z.reshape(-1, *event))) + self.output_bias
        if self.latent.grid:  # whole places, of which the last may stand out of the picture
            _, height, width = self.output_shape
            decoded = decoded[..., :height, :width]
        return full_precision(decoded.reshape(*leading, *self.output_shape))

    def log_px_z(self, x: Array, z: Array) -> Tensor:
        """log p(x|z), x [B, *X] and z [*, B, *E] -> [*, B]."""
        x = as_floats("x", x, like=self)
        if x.shape[-len(self.shape) :] != self.shape:
            raise ValueError(
                f"x must have a shape that ends in {list(self.shape)}, got {list(x.shape)}"
            )
        self.likelihood.meet(x)
        return self.likelihood.log_prob(self.decode(z), x)

    def elbo(self, x: Array, num_samples: int = 1, check: bool = True) -> Bound:
        """The true ELBO of x [B, *X]: exact samples of q, closed-form KL if there is one, beta = 1.

        To measure: its gradient is not that of its expectation. :meth:`forward` is to train.

        Args:
            check: look at the range of x, which waits for the device.
        """
        check_count("num_samples", num_samples)
        x = self.images(x, first_only=not check)
        q = self.encode(x)
        z = q.sample((num_samples,))
        reconstruction = self.log_px_z(x, z).mean(0)
        kl = self.kl(q, z)
        return Bound(reconstruction - kl.sum(-1), reconstruction, kl, q)

    @torch.no_grad()
    def log_likelihood(self, x: Array, num_samples: int = 100, chunk: int | None = None) -> Tensor:
        """The importance-weighted lower bound on log p(x) with `num_samples` samples, [B].

        How far its weights can be trusted, and other estimates: :mod:`vae_lab.evaluation.evidence`.

        Args:
            chunk: how many samples of each datum are decoded at once; bounds the memory, does not
                change the bound. None: what suits the device.
        """
        from .evaluation.evidence import importance_weighted

        return importance_weighted(self, x, num_samples, chunk).bound

    @torch.no_grad()
    def sample(self, num_images: int) -> Tensor:
        """Data for draws z of the prior, [num_images, *X]: the means of p(x|z), which are pictures
        without noise; of a likelihood that says so (:attr:`.Likelihood.draws`) draws of p(x|z)."""
        check_count("num_images", num_images)
        params = self.decode(self.p_z().sample((int(num_images),)))
        likelihood = self.likelihood
        return likelihood.sample(params) if likelihood.draws else likelihood.mean(params)

    @torch.no_grad()
    def reconstruct(self, x: Array) -> Tensor:
        """The means of p(x|z) at the most probable z, [B, *X]."""
        x = self.images(x)
        z = self.latent.mode(self.encode(x))
        return self.likelihood.given(x).mean(self.decode(z))

    def impute(self, x: Array, num_samples: int = 100, draw: bool = False) -> Tensor:
        """x [B, *X] with its missing values, which are NaN, filled: by their means given what was
        observed, or by a draw; see :func:`vae_lab.imputation.impute`."""
        from .imputation import impute

        return impute(self, x, num_samples, draw)

    @torch.no_grad()
    def interpolate(self, x0: Array, x1: Array, steps: int = 8) -> Tensor:
        """The means of p(x|z) on a path through the latent from x0 to x1, [steps, B, *X]."""
        check_count("steps", steps)
        z0, z1 = self._mode(x0), self._mode(x1)
        if len(z0) != len(z1) and 1 not in (len(z0), len(z1)):
            raise ValueError(f"x0 and x1 must be equally many, got {len(z0)} and {len(z1)}")
        return self.likelihood.mean(self.decode(self.latent.interpolate(z0, z1, steps)))

    def _mode(self, x: Array) -> Tensor:
        return self.latent.mode(self.encode(self.images(x)))

    @torch.no_grad()
    def initialize(self, x: Array) -> None:
        """Learns the units of the data from x [N, *X], of the training data, and starts the decoder
        at their mean, where the likelihood allows."""
        x = as_data(x, self.shape, self, any_size=bool(self.latent.grid))
        self.likelihood.check(x)
        self._start_at(self.likelihood.start(x))

    @torch.no_grad()
    def initialize_bias(self, mean: Array) -> None:
        """Starts the decoder at the mean of the data [*X], where the likelihood allows."""
        mean = as_floats("mean", mean, like=self)
        if mean.shape != self.shape:
            raise ValueError(f"mean must have the shape {list(self.shape)}, got {list(mean.shape)}")
        if self.latent.grid:  # a place does not know where in the picture it is
            mean = mean.mean((-2, -1), keepdim=True)
        bias = self.likelihood.bias(mean.to(self.device, self.dtype))
        if not bias.isfinite().all():
            low, high = mean.min().item(), mean.max().item()
            raise ValueError(f"mean must be that of data in [0, 1], got {low:g} to {high:g}")
        self._start_at(bias)

    def _start_at(self, bias: Tensor) -> None:
        if self.latent.grid:  # a place does not know where in the picture it is
            bias = bias.mean((-2, -1), keepdim=True)
        self.output_bias.copy_(bias)
