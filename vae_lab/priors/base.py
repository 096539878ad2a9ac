"""A prior p(z) that is a module of its own, and may be any distribution over the latent's z."""

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.transforms import AffineTransform

from ..arguments import PrintsArguments
from ..distributions import wrapped
from ..inputs import Shape
from ..memory import encode_in_parts
from ..seeding import seeded

if TYPE_CHECKING:
    from ..conditions import Condition
    from ..latents import Latent
    from ..vae import VAE


class Prior(PrintsArguments, nn.Module):
    r"""The distribution p(z) of a model, in the place of the latent's own.

    It needs :meth:`forward` only. The KL to it is sampled,

    .. math:: \mathrm{KL}(q(z|x) \,\|\, p(z)) = \mathbb{E}_{q(z|x)}[\log q(z|x) - \log p(z)]

    as one number for all of z: its variables may depend on each other. Its parameters are trained
    together with the model's.

    Attributes:
        input_shape: of what the encoder sees of a datum; the VAE sets it before :meth:`bind`.
        condition_width: C, of the vector of y on which z is conditioned, set likewise; 0: of none.
        takes_condition: can it be conditioned.
        encodes: does it ask the model's encoder, which then has to see x alone.
    """

    input_shape: Shape
    started: bool = False  # or loaded: not to be started by data
    condition_width: int = 0
    takes_condition: ClassVar[bool] = False
    encodes: ClassVar[bool] = False

    def bind(self, latent: "Latent") -> None:
        """Called once, by the VAE, with the latent whose z this is the prior of.

        The place to make the parameters whose size depends on the latent's `event_shape`, `kind` or
        `categories`, and to refuse a latent that the prior does not go with.
        """

    def forward(self, condition: Tensor | None) -> Distribution:
        r"""p(z), batch shape [] and event shape [\*E]; given a condition [\*B, C] of [\*B].

        Args:
            condition: the vectors of y that z is conditioned on; None: nothing.
        """
        raise NotImplementedError

    def of(self, vae: "VAE", condition: Tensor | None) -> Distribution:
        """p(z) of a model, for a prior that depends on its encoder; :meth:`forward` of others."""
        distribution: Distribution = self(condition)
        return distribution

    def start(self, inputs: Tensor) -> None:
        """Learns from training data where to start, as the encoder sees them, [N, *input_shape]."""

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        self.started = self.started or any(name.startswith(prefix) for name in state)
        super()._load_from_state_dict(state, prefix, *more)

    def meet(self, z: Tensor) -> None:
        r"""Learns from draws of a trained model's posteriors where to start, [N, \*E]."""

    @property
    def uniform(self) -> bool:
        """Whether it has the same probability for all values, and so no temperature."""
        return False

    @property
    def has_temperature(self) -> bool:
        """Whether :meth:`sample` draws others at another temperature than 1."""
        return False

    def sample(
        self, count: int, temperature: float = 1.0, seed: int = 0, condition: Tensor | None = None
    ) -> Tensor:
        r"""Draws at a temperature, [count, \*E]; the same noise at every temperature.

        What a temperature does is each prior's to say, in a method of its own: see
        :meth:`.Latent.sample`.

        Args:
            condition: of all draws, [C], or of each, [count, C].
        """
        if temperature != 1:
            raise ValueError(
                f"{type(self).__name__} has draws of temperature 1 only, got {temperature:g}"
            )
        tensors = (*self.parameters(), *self.buffers())
        device = tensors[0].device if tensors else torch.get_default_device()
        with seeded(seed, device), torch.no_grad():
            return drawn(self(condition), count)


def drawn(p: Distribution, count: int) -> Tensor:
    r"""Draws of one distribution, or of each of so many, [count, \*E]."""
    return p.sample() if p.batch_shape else p.sample((count,))


class Standardizer(nn.Module):
    """Numbers in units of their own mean and standard deviation, one of each for a variable of a
    place; z itself, until it has met some."""

    loc: Tensor
    scale: Tensor

    def __init__(self, variables: Shape) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(variables))
        self.register_buffer("scale", torch.ones(variables))

    @torch.no_grad()
    def meet(self, z: Tensor) -> None:
        rows = z.reshape(-1, *self.loc.shape)
        self.loc.copy_(rows.mean(0))
        self.scale.copy_(rows.std(0, correction=0).clamp_min(1e-6))

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.loc) / self.scale

    def inverse(self, z: Tensor) -> Tensor:
        return z * self.scale + self.loc

    def undone(self, of_a_place: Distribution) -> Distribution:
        """The distribution of z, given that of z in these units, of one place."""
        affine = AffineTransform(self.loc, self.scale, self.loc.ndim)
        return TransformedDistribution(of_a_place, [affine], validate_args=False)


def at_one_place(latent: "Latent") -> "Latent":
    """A copy of the latent, of one place."""
    place = copy(latent)
    place.grid = ()
    return place


def over_places(latent: "Latent", of_a_place: Distribution) -> Distribution:
    """Independent draws at all places of the latent's grid, [] or [*B, 1, 1] -> [*B]."""
    if not latent.grid:
        return of_a_place
    expanded = of_a_place.expand(torch.broadcast_shapes(of_a_place.batch_shape, latent.grid))
    return wrapped(expanded, len(latent.event_shape))


def at_places(latent: "Latent", condition: Tensor | None) -> Tensor | None:
    """Vectors [*B, C] as those of places, on a grid [*B, 1, 1, C]."""
    if condition is None:
        return None
    return condition.reshape(*condition.shape[:-1], *[1] * len(latent.grid), condition.shape[-1])


def bound(
    prior: Prior, latent: "Latent", input_shape: Shape, condition: "Condition | None" = None
) -> Prior:
    """The prior, bound to a latent and to what the model is conditioned on.

    Raises:
        ValueError: it is no prior, not one over the latent's z, or another one is to be trained.
    """
    name = type(prior).__name__
    if not isinstance(prior, Prior):
        raise ValueError(f"prior must be a vae_lab.priors.Prior, got {name}: derive it from Prior")
    if "input_shape" in vars(prior):
        raise ValueError(f"this {name} belongs to a VAE already: make another one")
    if latent.learn_prior:
        raise ValueError(
            f"the prior {name} replaces the latent's own, which learn_prior=true would train: "
            "leave out one of the two"
        )
    if condition is not None and prior.encodes:
        raise ValueError(
            f"the prior {name} needs an encoder of x alone, and this model's sees y too: type "
            "prior=mixture, flow or autoregressive, or leave out model.condition"
        )
    width = condition.width if condition is not None and condition.prior else 0
    if width and not prior.takes_condition:
        raise ValueError(
            f"the prior {name} cannot be conditioned on y: type prior=mixture, flow or "
            "autoregressive, or condition_prior=false"
        )
    prior.input_shape = input_shape
    prior.condition_width = width
    try:
        prior.bind(latent)
    except ValueError:
        del prior.input_shape  # it goes with another latent
        raise
    return prior


def check_learns(prior: Prior | None) -> None:
    """Refuses a prior that has nothing to train."""
    if prior is not None and not any(p.requires_grad for p in prior.parameters()):
        raise ValueError(
            f"a second stage needs a prior to train, {type(prior).__name__} has no parameters: "
            "type prior=mixture, vamp, flow or autoregressive"
        )


@torch.no_grad()
def start(vae: "VAE", x: Tensor, y: Tensor | None = None, seed: int = 0) -> None:
    """Starts a new prior of a model by training data x [N, *X] and their labels, if it is
    conditional: pseudo-inputs are some of them; and, where the encoder is trained already and is
    not to move, by draws of their posteriors."""
    prior = vae.prior
    if prior is None or prior.started:
        return
    prior.start(vae.seen(x))
    if not vae.trains_posterior:
        vae = vae if y is None else vae.of_data(x, y)
        with seeded(seed, vae.device):
            prior.meet(encode_in_parts(vae, x).sample())
    prior.started = True


def check_shapes(prior: Prior, p: Distribution, latent: "Latent") -> None:
    """Refuses a prior that is not one over the latent's z."""
    if (p.batch_shape, p.event_shape) != ((), latent.event_shape):
        raise ValueError(
            f"the prior {type(prior).__name__} must have batch shape [] and event shape "
            f"{[*latent.event_shape]}, got {[*p.batch_shape]} and {[*p.event_shape]}"
        )
