"""The FSQ-VAE."""

from collections.abc import Sequence
from typing import Any

from vae_lab.estimators import Estimator, VectorQuantization
from vae_lab.latents import FSQ, Latent
from vae_lab.schedules import Schedule

from .base import VAEModule
from .vq_vae import temperature_for


class FSQVAE(VAEModule):
    """Codes that are the points of a grid, to which the encoder's numbers are rounded.

    Args:
        latents: L, the number of codes.
        levels: of each dimension of a code.
        temperature: of the probabilities of codes; None (null): 0 for the model's own estimator,
            which takes the nearest code, and 1 for others.
        learn_prior: train the prior's logits.
        whiten: so many first steps, which the paper does not; see :class:`FSQ`.
        latent: another one than :class:`FSQ`.
        estimator: another one than :class:`VectorQuantization` without commitment, as h has bounds.
        others: see :class:`VAEModule`.

    Source: Mentzer, Minnen, Agustsson & Tschannen, *Finite Scalar Quantization: VQ-VAE Made
    Simple*, ICLR 2024, arXiv:2309.15505
    """

    own_latent_settings = ("latents", "levels", "temperature", "learn_prior", "whiten")
    own_prior_settings = ("learn_prior",)

    def __init__(
        self,
        *,
        latents: int = 1,
        levels: Sequence[int] = (8, 5, 5, 5),
        temperature: float | Schedule | None = None,
        learn_prior: bool = False,
        whiten: int = 300,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        **others: Any,
    ) -> None:
        estimator = estimator or VectorQuantization(commitment=0.0)
        drawn_at = temperature_for(estimator, temperature)
        latent = latent or FSQ(levels, latents, drawn_at, learn_prior, whiten)
        super().__init__(latent=latent, estimator=estimator, **others)
