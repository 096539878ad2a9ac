"""The Gumbel-Softmax VAE."""

from typing import Any

from vae_lab.estimators import Estimator, GumbelSoftmax
from vae_lab.latents import Latent, discrete_latent
from vae_lab.schedules import Schedule

from .base import VAEModule


class GumbelVAE(VAEModule):
    """Discrete latents, trained through Gumbel-Softmax samples.

    Args:
        latents: L, the number of variables.
        categories: K, the classes of each variable; None (null): bits.
        learn_prior: train the prior's logits.
        temperature: of the relaxation, a number or a schedule.
        hard: straight-through: exact samples forward, the relaxation's gradient backward.
        num_samples: samples of z for one datum.
        latent: another one than these categories or bits.
        estimator: another one than :class:`GumbelSoftmax`.
        shared: see :class:`VAEModule`.

    Source: Jang, Gu & Poole, *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017,
    arXiv:1611.01144
    """

    own_latent_settings = ("latents", "categories", "learn_prior")
    own_prior_settings = ("learn_prior",)
    own_estimator_settings = ("temperature", "hard", "num_samples")

    def __init__(
        self,
        *,
        latents: int = 20,
        categories: int | None = 10,
        learn_prior: bool = False,
        temperature: float | Schedule = 1.0,
        hard: bool = False,
        num_samples: int = 1,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(
            latent=latent or discrete_latent(latents, categories, learn_prior),
            estimator=estimator or GumbelSoftmax(temperature, hard, num_samples),
            **shared,
        )
