"""The ELBO, a distance in features, and a discriminator that is trained beside them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import all_sum
from ..distributions import detach
from ..estimators import Estimator
from ..estimators.base import Integrand, descent, surrogate
from ..networks.base import widths
from ..objectives import Seen, Terms
from ..schedules import Schedule, Step, as_schedule
from .discriminator import PatchDiscriminator
from .perceptual import Perceptual

if TYPE_CHECKING:
    from ..levels import Level, Observed
    from ..vae import VAE

DECAY = 0.9  # of the averages from which the adaptive weight comes


class Adversarial(Perceptual):
    r"""The perceptual objective, and how real a discriminator takes the decoder's mean to be.

    .. math:: \mathcal{L}(x) - w D \, \mathbb{E}_q[d] + a \lambda \, \mathbb{E}_q[g(\mu(z))], \qquad
              \lambda^2 = \frac{\overline{\|\partial \log p(x|z) / \partial \theta(z)\|^2}}
                               {\overline{\|\partial g(\mu(z)) / \partial \theta(z)\|^2}}

    with :math:`\theta(z)` the decoder's output, :math:`\mu(z)` the mean of p(x|z) and g the mean of
    the discriminator's logits over the patches. The adaptive weight lambda makes the gradient of g
    as long as that of the log-likelihood, whatever the discriminator's scale, so that a is their
    ratio. It comes from averages over past steps, of all processes: within a step it is a constant.

    The discriminator is trained from the first step, in the same backward pass, on x and on the
    means of the same draws of z, by the hinge loss
    :math:`\max(0, 1 - g(x)) + \max(0, 1 + g(\mu))` of every patch. What the
    decoder is trained with leaves no gradient in it. It is no part of the model: checkpoints hold
    it, releases do not.

    Args:
        beta, free_bits, aggregate_kl: see :class:`~vae_lab.objectives.ELBO`.
        perceptual, features: see :class:`Perceptual`; no distance in features where it is 0.
        adversarial: a, not negative; 0: there is no discriminator.
        start: the step of the optimizer from which on the decoder sees the discriminator.
        channels: of the discriminator; see :class:`PatchDiscriminator`.
        discriminator_lr: its learning rate; None: the optimizer's.
        discriminator_clip: the largest norm of its gradient, which is clipped apart from that of
            the model; None: any.

    Source: Esser, Rombach & Ommer, *Taming Transformers for High-Resolution Image Synthesis*, CVPR
    2021, arXiv:2012.09841, eq. 7, for the last layer's gradient; hinge: Lim & Ye, *Geometric GAN*,
    arXiv:1705.02894
    """

    compiles = False  # it takes derivatives of the discriminator on the way
    squared_norms: Tensor  # averages, of the gradients of log p(x|z) and of g
    _loss: Tensor | None = None  # the discriminator's, of the last batch; no part of the state

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        aggregate_kl: float | Schedule = 0.0,
        perceptual: float | Schedule = 1.0,
        features: str | None = None,
        adversarial: float = 0.5,
        start: int = 1000,
        channels: Sequence[int] = (32, 64, 128),
        discriminator_lr: float | None = None,
        discriminator_clip: float | None = 1.0,
    ) -> None:
        super().__init__(beta, free_bits, aggregate_kl, perceptual, features)
        if not 0 <= adversarial < math.inf:
            raise ValueError(f"adversarial must be finite and not negative, got {adversarial:g}")
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise ValueError(f"start must be a number of steps, got {start!r}")
        for name, value in (("lr", discriminator_lr), ("clip", discriminator_clip)):
            if value is not None and not value > 0:
                raise ValueError(f"discriminator_{name} must be positive, got {value:g}")
        self.adversarial, self.start = adversarial, start
        self.channels = widths("channels", channels)
        self.discriminator_lr, self.discriminator_clip = discriminator_lr, discriminator_clip
        self.discriminator: PatchDiscriminator | None = None
        if adversarial:
            self.monitor = None
            self.discriminator = PatchDiscriminator(channels)
            self.adversarial_weight = _from_step(start, adversarial)
            self.register_buffer("squared_norms", torch.zeros(2))

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.discriminator is None:
            return []
        settings = {"lr": self.discriminator_lr, "max_norm": self.discriminator_clip}
        given = {name: value for name, value in settings.items() if value is not None}
        return [{"params": list(self.discriminator.parameters()), **given}]

    def forward(self, vae: "VAE", estimator: Estimator, x: Tensor) -> Terms:
        if self.discriminator is None:
            return super().forward(vae, estimator, x)
        own, other = self.squared_norms.sqrt()
        # Also where the backward pass computes a part of this step once more.
        self._ratio = own / other.where(other > 0, torch.inf)  # 0, where g has no slope at all
        self._squares: list[Tensor] = []
        terms = super().forward(vae, estimator, x)
        if self.training and self._squares:
            self._move_on(torch.stack(self._squares).sum(0))
        return terms

    def logged(self) -> dict[str, Tensor]:
        """The discriminator's loss: 2 where it cannot tell the pictures apart, 0 where it can."""
        return {} if self._loss is None else {"discriminator_loss": self._loss}

    def _move_on(self, squares: Tensor) -> None:
        self.squared_norms.lerp_(all_sum(squares).to(self.squared_norms), 1 - DECAY)

    def _gain(self, observed: "Observed", seen: Seen) -> Integrand | None:
        near, discriminator = super()._gain(observed, seen), self.discriminator
        if discriminator is None:
            return near
        weight = self.adversarial_weight.value * self._ratio

        def gain(parameters: Tensor) -> Tensor:
            real = _judged(discriminator, parameters, observed, seen, weight)
            return real if near is None else near(parameters) + real

        return gain

    def _beside(self, level: "Level", estimator: Estimator, seen: Seen) -> Tensor | None:
        """Trains the discriminator."""
        discriminator, observed = self.discriminator, level.observed
        if discriminator is None or observed is None or not (self.training and seen.has("picture")):
            return None
        self._squares.append(torch.stack([seen.values(name).sum() for name in ("own", "other")]))
        real = F.relu(1 - discriminator(observed.x)).mean(-1)  # [*B]
        made = F.relu(1 + discriminator(seen.values("picture"))).mean(-1)  # [S, *B]
        made = estimator.sample_mean(detach(level.q), seen.values("z"), made)
        self._loss = (real + made).detach().mean()
        return descent(real + made)


def _judged(
    discriminator: PatchDiscriminator,
    parameters: Tensor,
    observed: "Observed",
    seen: Seen,
    weight: Tensor,
) -> Tensor:
    """The weighted mean logit of the pictures that are decoded, [S, *B].

    Its derivative is taken here, for the parameters of p(x|z) only, and handed on.
    """
    likelihood, at, weight = observed.likelihood, parameters.detach(), weight.to(parameters.dtype)
    if not torch.is_grad_enabled():
        return weight * discriminator(likelihood.mean(at)).mean(-1)
    at.requires_grad_()
    picture = likelihood.mean(at)
    logit = discriminator(picture).mean(-1)
    (slope,) = torch.autograd.grad(logit.sum(), at)
    (own,) = torch.autograd.grad(likelihood.log_prob(at, observed.x).sum(), at)
    squares = [likelihood.sum_over_datum(g.square()) for g in (own, slope)]
    seen.note(picture=picture, own=squares[0], other=squares[1])
    attached = surrogate(likelihood.sum_over_datum(parameters * (weight * slope)))
    return weight * logit.detach() + attached


def _from_step(start: int, weight: float) -> Schedule:
    return Step(0.0, weight, start) if start else as_schedule(weight)
