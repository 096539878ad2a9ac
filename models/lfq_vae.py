"""The LFQ-VAE."""

from typing import Any

from vae_lab.estimators import Estimator, VectorQuantization
from vae_lab.latents import LFQ, Latent
from vae_lab.schedules import Schedule

from .base import VAEModule
from .vq_vae import temperature_for


class LFQVAE(VAEModule):
    """Codes of bits, each the sign of one of the encoder's numbers.

    Args:
        latents: L, the number of bits.
        sphere: codes and what the encoder gives have a length of 1.
        temperature: of the probabilities of bits; None (null): 0 for the model's own estimator,
            which takes the nearest code, and 1 for others.
        learn_prior: train the prior's logits.
        whiten: so many first steps, which the paper does not; see :class:`LFQ`.
        commitment: see :class:`VectorQuantization`.
        latent: another one than :class:`LFQ`.
        estimator: another one than :class:`VectorQuantization`.
        others: see :class:`VAEModule`.

    Source: Yu et al., *Language Model Beats Diffusion: Tokenizer is Key to Visual Generation*, ICLR
    2024, arXiv:2310.05737
    """

    own_latent_settings = ("latents", "sphere", "temperature", "learn_prior", "whiten")
    own_prior_settings = ("learn_prior",)
    own_estimator_settings = ("commitment",)

    def __init__(
        self,
        *,
        latents: int = 10,
        sphere: bool = False,
        temperature: float | Schedule | None = None,
        learn_prior: bool = False,
        whiten: int = 300,
        commitment: float = 1.0,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        **others: Any,
    ) -> None:
        estimator = estimator or VectorQuantization(commitment)
        drawn_at = temperature_for(estimator, temperature)
        latent = latent or LFQ(latents, sphere, drawn_at, learn_prior, whiten)
        super().__init__(latent=latent, estimator=estimator, **others)
