"""The ELBO and a distance in the features of a network."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from ..estimators import Estimator
from ..estimators.base import Integrand
from ..evaluation.distance import FeatureDistance
from ..inputs import is_picture
from ..objectives import ELBO, Seen, Terms, not_negative
from ..precision import FullPrecision
from ..schedules import Schedule, bounds

if TYPE_CHECKING:
    from ..levels import Level, Observed
    from ..vae import VAE


class Perceptual(FullPrecision, ELBO):
    r"""The ELBO, and how near the decoder's mean comes to x in the features of a network.

    .. math:: \mathcal{L}(x) - w \, D \, \mathbb{E}_{q(z|x)}[d(x, \mathbb{E}[x|z])]

    with d of :class:`~vae_lab.evaluation.distance.FeatureDistance` and D the number of values of a
    picture: w is in nats for each value, as log p(x|z) is a sum over them, and means the same at
    every size. It is no bound on log p(x).

    The distance is added to log p(x|z) at each z: the decoder has its pathwise gradient, and the
    encoder what its estimator makes of log p(x|z), by the score function too.

    Pictures have values in [0, 1] and any size. The networks that see them stay in 32 bits, also
    where the model's weights have 16.

    Args:
        beta, free_bits, aggregate_kl: see :class:`~vae_lab.objectives.ELBO`.
        perceptual: w, a number or a schedule, not negative; 0: exactly the ELBO.
        features: the network; see :class:`~vae_lab.evaluation.distance.FeatureDistance`.

    Source: Johnson, Alahi & Fei-Fei, *Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution*, ECCV 2016, arXiv:1603.08155
    """

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        aggregate_kl: float | Schedule = 0.0,
        perceptual: float | Schedule = 1.0,
        features: str | None = None,
    ) -> None:
        super().__init__(beta, free_bits, aggregate_kl)
        self.perceptual = not_negative("perceptual", perceptual)
        self.features = features
        self.distance = FeatureDistance(features) if ever(self.perceptual) else None
        if self.distance is not None:
            self.monitor = None  # the ELBO falls as pictures become sharp

    def forward(self, vae: "VAE", estimator: Estimator, x: Tensor) -> Terms:
        of_any_unit = vae.likelihood.learns_units or vae.likelihood.missing
        if of_any_unit or not is_picture(vae.shape):
            of_bytes = of_any_unit and is_picture(vae.shape)
            cure = "use ELBO" + ", or pass bytes, as (255 * x).byte()" * of_bytes
            raise ValueError(
                f"{type(self).__name__} needs pictures [C, H, W] with values in [0, 1], got data "
                f"of shape {list(vae.shape)}{' in any unit' * of_any_unit}: {cure}"
            )
        return super().forward(vae, estimator, x)

    def _below(self, level: "Level", estimator: Estimator, seen: Seen) -> Integrand:
        observed = level.observed
        if observed is None:
            return _of_levels(super()._below(level, estimator, seen), seen)
        gain = self._gain(observed, seen)
        if gain is None:
            return super()._below(level, estimator, seen)

        def value(z: Tensor) -> Tensor:
            parameters = observed.decode(z)
            more = gain(parameters)
            seen.note(lost=-more)
            return observed.likelihood.log_prob(parameters, observed.x) + more

        return value

    def _gain(self, observed: "Observed", seen: Seen) -> Integrand | None:
        """What is added to log p(x|z), of its parameters [S, *B, *P] -> [S, *B]; None: nothing."""
        if self.distance is None:
            return None
        distance, x = self.distance, observed.x
        weight = self.perceptual.value * math.prod(x.shape[-3:])
        return lambda p: -weight * distance(x, observed.likelihood.mean(p)).to(p.dtype)


def ever(weight: Schedule) -> bool:
    """Whether a weight is not 0 all the time."""
    return bounds(weight)[1] > 0


def _of_levels(value: Integrand, seen: Seen) -> Integrand:
    def checked(z: Tensor) -> Tensor:
        below = value(z)
        if not seen.has("kl"):
            raise ValueError("the last Level must say what is `observed`, got None")
        return below

    return checked
