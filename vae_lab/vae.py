"""The generative model p(z) p(x|z) and its recognition model q(z|x). No Lightning in it."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .conditions import Condition
from .dense import Dense
from .distributions import full_precision, per_variable
from .distributions import kl as closed_kl
from .generation import Generation
from .inputs import Array, Shape, as_data, as_floats, as_tensor, check_count, joined
from .latents import Latent
from .levels import Bound, Level, Levels, Observed, over_labels
from .networks.base import check_shape, grid
from .priors import Prior, Standard
from .priors.base import bound, check_shapes
from .storage.keeping import Pretrained
from .views import Views

if TYPE_CHECKING:
    from .estimators import Estimator
    from .likelihoods import Likelihood
    from .networks import Network
    from .objectives import Objective, Terms

KL_SAMPLES = 16  # of z, for a KL without a closed form


class VAE(Views, Generation, Pretrained):
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
        condition: what q, the decoder and maybe the prior know besides, such as a label y; see
            :mod:`vae_lab.conditions`. All that is said of x and z below is then given y.

    Attributes:
        history: what :func:`vae_lab.fit` measured after each epoch; other models have none.
    """

    history: list[dict[str, float]]

    def __init__(
        self,
        shape: Shape,
        network: "Network",
        latent: Latent,
        likelihood: "Likelihood",
        prior: Prior | None = None,
        condition: Condition | None = None,
    ) -> None:
        super().__init__()
        check_shape(shape)
        self.shape = tuple(shape)
        self.output_shape = likelihood.bind(self.shape)
        self.network = network
        seen = likelihood.input_shape(self.shape)
        self.encoder = network.encoder(seen)
        latent.bind(grid(network, self.shape))
        more = 0 if condition is None else condition.width
        self.head = Dense(self.encoder.features + more, latent.parameter_size)
        self.latent = latent
        self.decoder = network.decoder(latent.width + more, self.output_shape)
        bias = (self.output_shape[0], 1, 1) if latent.grid else self.output_shape
        self.output_bias = nn.Parameter(torch.zeros(bias))
        self.likelihood = likelihood
        self.prior: Prior | None = None
        if prior is None and not latent.closed_kl:
            prior = Standard()
        if prior is not None:
            self._set_prior(prior, condition)
        self.condition = condition
        if condition is not None:
            condition.bind(network, seen, latent)
            if prior is not None:
                condition.leave_prior()

    def set_prior(self, prior: Prior) -> None:
        """Puts a prior in the place of that which there is.

        Raises:
            ValueError: it is none over this model's z.
        """
        self._set_prior(prior, self.condition)
        if self.condition is not None:
            self.condition.leave_prior()

    def _set_prior(self, prior: Prior, condition: Condition | None) -> None:
        bound(prior, self.latent, self.likelihood.input_shape(self.shape), condition)
        prior.to(self.device, self.dtype)
        width = prior.condition_width
        vector = self.output_bias.new_zeros(width) if width else None
        with torch.no_grad():
            check_shapes(prior, prior.of(self, vector), self.latent)
        if not isinstance(prior, Standard):
            self.latent.leave_prior()
        self.prior = prior

    @property
    def device(self) -> torch.device:
        """The device of the weights, where the data has to be."""
        return self.output_bias.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the networks compute."""
        return self.output_bias.dtype

    @property
    def trains_posterior(self) -> bool:
        """Whether q(z|x) is to move."""
        parts = (self.encoder, self.head)
        return any(p.requires_grad for part in parts for p in part.parameters())

    def forward(
        self,
        x: Array,
        estimator: "Estimator | None" = None,
        objective: "Objective | None" = None,
        y: Any = None,
    ) -> "Terms":
        """The ELBO of x, each term [B] and in nats, to be maximised; or another objective of it.

        The same as `objective(vae, estimator, x)`, through the door at which torch's wrappers wait
        (`DistributedDataParallel(vae)(x)`, `torch.compile(vae)(x)`).

        Args:
            estimator: of its gradient. None: one without bias, which is reparameterised where q can
                be, and else the score function with four samples; of a q without randomness
                :class:`~vae_lab.estimators.VectorQuantization`.
            objective: None: :class:`vae_lab.objectives.ELBO`.
        """
        from .objectives import ELBO

        for part in (estimator, objective):
            if part is not None and (isinstance(part, type) or not callable(part)):
                raise ValueError(f"pass an object such as Reparameterization(), got {part!r}")
        return (objective or ELBO())(self, estimator or self._estimator(), x, y)

    def _estimator(self) -> "Estimator":
        from .estimators import Exact
        from .estimators.suited import suited

        estimator = suited(self.latent)
        return Levels(Exact(), estimator) if self.infers_labels else estimator

    def images(self, x: Array, first_only: bool = False) -> Tensor:
        """x as the model takes it: a tensor of this shape, of floats in the likelihood's range.

        Args:
            first_only: look at the values of the first batch only. A look at them waits for the
                device, and none is taken inside a compiled function.

        Raises:
            ValueError: x is something else; one line that says what to type.
        """
        x = self.as_data(x)
        look = self.likelihood.meet if first_only else self.likelihood.inspect
        look(x)
        return x

    def as_data(self, x: Array) -> Tensor:
        """x as a tensor of this model's shape, type and device; its values are not looked at."""
        columns = getattr(self.likelihood, "columns", None)
        return as_data(x, self.shape, self, any_size=bool(self.latent.grid), columns=columns)

    def features(self, x: Tensor) -> Tensor:
        """The encoder's of x [B, *X], with the condition's vector behind them, [B, F]; of a fully
        convolutional one [B, h, w, F]."""
        seen = self.seen(x)
        features = self.encoder(seen)
        vector = self.vector_of(seen)
        return features if vector is None else joined(features, vector, len(self.latent.grid))

    def seen(self, x: Tensor) -> Tensor:
        """What encoders see of x."""
        return self.likelihood.inputs(x).to(self.dtype)

    def posterior(self, features: Tensor) -> Distribution:
        """The encoder's features -> q(z|x), batch shape [B]."""
        width = self.head.in_features
        if features.shape[-1:] != (width,):
            raise ValueError(
                f"features must have the shape [B, {width}], got {list(features.shape)}"
            )
        return self.latent.distribution(self._q_parameters(features))

    def _q_parameters(self, features: Tensor) -> Tensor:
        return full_precision(self.head(features))

    def encode(self, x: Array, y: Any = None) -> Distribution:
        """x [B, *X] -> q(z|x), batch shape [B].

        Args:
            y: of a conditional model, here and below: see :meth:`given`. A label that is inferred
                may be left out, or be -1 where it is not known: it is then the most probable one.
        """
        if y is not None:
            return self.given(y).encode(x)
        x = self.as_data(x)
        return self.posterior(self.features(x))

    def p_z(self, y: Any = None) -> Distribution:
        """The prior p(z), batch shape []; given y, if it depends on y, that of y."""
        if y is not None:
            return self.given(y).p_z()
        if self.prior is None:
            if self.condition is None or not self.condition.prior:
                return self.latent.prior()
            vector = self.vector_of(None)
            return self.latent.prior(None if vector is None else self.condition.shift(vector))
        vector = self.vector_of(None) if self.prior.condition_width else None
        p = self.prior.of(self, vector)
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
        if self.prior is None and self.condition is not None and self.condition.prior:
            return closed_kl(q, self.p_z())
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
        if self.condition is not None and self.infers_labels:
            return self.condition.level(self.seen(x), self._y, lambda v: self.settled(v).infer(x))
        features = self.features(x)
        parameters = self._q_parameters(features)
        learns = self.training and len(x) and self.head.weight.requires_grad
        q = self.latent.learn(parameters) if learns else self.latent.distribution(parameters)
        kl = aggregate_kl = None
        if self.prior is None:
            kl = partial(self.kl, q)
        if self.own_prior:
            aggregate_kl = partial(self.latent.aggregate_kl, q)
        if self.latent.grid:
            features = features.flatten(-3, -2).mean(-2)
        observed = Observed(x, self.decode, self.likelihood)
        below = partial(self.log_px_z, x)
        level = Level(q, self.p_z, kl, features, below, aggregate_kl, observed)
        code = self.latent.embedded(q)
        if code is None:
            return level
        observed = Observed(x, self._decode_embedded, self.likelihood)
        of_code = level._replace(q=code, below=observed.log_prob, observed=observed)
        return level._replace(embedded=of_code)

    def decode(self, z: Array, y: Any = None) -> Tensor:
        """z [*, *E] -> the likelihood's parameters [*, *P]."""
        if y is not None:
            return self.given(y).decode(z)
        z = as_tensor("z", z, like=self)
        event = self.latent.event_shape
        leading = z.shape[: z.ndim - len(event)]
        if z.shape != (*leading, *event):
            raise ValueError(f"z must have a shape that ends in {list(event)}, got {list(z.shape)}")
        z = z.to(self.dtype)  # sampled in float32 also where the weights are not
        return self._decode_embedded(self._embed(z))

    def _decode_embedded(self, embedded: Tensor) -> Tensor:
        """As :meth:`decode`, of what the latent lets the decoder see of z."""
        embedded = self._with_condition(embedded.to(self.dtype))
        places = len(self.latent.grid)
        leading = embedded.shape[: embedded.ndim - 1 - places]
        decoded = (
            self.decoder(embedded.reshape(-1, *embedded.shape[len(leading) :])) + self.output_bias
        )
        if self.latent.grid:  # whole places, of which the last may stand out of the picture
            _, height, width = self.output_shape
            decoded = decoded[..., :height, :width]
        return full_precision(decoded.reshape(*leading, *self.output_shape))

    def embed(self, z: Tensor) -> Tensor:
        """What the decoder sees of z [*, *E] and of the condition, [*, F] or [*, h, w, F]."""
        return self._with_condition(self._embed(z))

    def _embed(self, z: Tensor) -> Tensor:
        leading = z.shape[: z.ndim - len(self.latent.event_shape)]
        flat = self.latent.embed(z.reshape(-1, *z.shape[len(leading) :]))
        return flat.reshape(*leading, *flat.shape[1:])

    def _with_condition(self, embedded: Tensor) -> Tensor:
        vector = self.vector_of(None)
        return embedded if vector is None else joined(embedded, vector, len(self.latent.grid))

    def log_px_z(self, x: Array, z: Array, y: Any = None) -> Tensor:
        """log p(x|z), x [B, *X] and z [*, B, *E] -> [*, B]."""
        if y is not None:
            return self.given(y).log_px_z(x, z)
        x = as_floats("x", x, like=self)
        if x.shape[-len(self.shape) :] != self.shape:
            raise ValueError(
                f"x must have a shape that ends in {list(self.shape)}, got {list(x.shape)}"
            )
        self.likelihood.meet(x)
        return self.likelihood.log_prob(self.decode(z), x)

    def elbo(self, x: Array, num_samples: int = 1, check: bool = True, y: Any = None) -> Bound:
        """The true ELBO of x [B, *X]: exact samples of q, closed-form KL if there is one, beta = 1.

        To measure: its gradient is not that of its expectation. :meth:`forward` is to train.

        Args:
            check: look at the range of x, which waits for the device.
        """
        check_count("num_samples", num_samples)
        x = self.images(x, first_only=not check)
        if y is not None:
            return self.given(y).elbo(x, num_samples, check)
        if self.infers_labels:
            return over_labels(self, x, num_samples)
        q = self.encode(x)
        if not len(x):  # of which torch sums no log-densities
            nothing = self.output_bias.new_zeros(0)
            return Bound(nothing, nothing, nothing.expand(self.latent.num_variables, -1).mT, q)
        z = q.sample((num_samples,))
        reconstruction = self.log_px_z(x, z).mean(0)
        kl = self.kl(q, z)
        return Bound(reconstruction - kl.sum(-1), reconstruction, kl, q)

    @torch.no_grad()
    def log_likelihood(
        self, x: Array, num_samples: int = 100, chunk: int | None = None, y: Any = None
    ) -> Tensor:
        """The importance-weighted lower bound on log p(x) with `num_samples` samples, [B].

        How far its weights can be trusted, and other estimates: :mod:`vae_lab.evaluation.evidence`.

        Args:
            chunk: how many samples of each datum are decoded at once; bounds the memory, does not
                change the bound. None: what suits the device.
        """
        from .evaluation.evidence import importance_weighted

        return importance_weighted(self.given(y), x, num_samples, chunk).bound

    @torch.no_grad()
    def initialize(self, x: Array, y: Any = None) -> None:
        """Learns the units of the data from x [N, *X], of the training data, and of their y, and
        starts the decoder at their mean, where the likelihood allows."""
        if y is not None and self.condition is not None:
            self.condition.start(y)
        x = self.as_data(x)
        self.likelihood.check(x)
        if self.latent.grid:  # a place does not know where in the picture it is
            x = x.movedim(1, -1).reshape(-1, self.shape[0], 1, 1)
        self.output_bias.copy_(self.likelihood.start(x))

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
        self.output_bias.copy_(bias)
