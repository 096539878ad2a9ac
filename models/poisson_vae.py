"""The Poisson VAE."""

from typing import Any, Literal

from vae_lab.estimators import Estimator, Fini
from vae_lab.latents import Latent, Poisson

from .base import VAEModule


class PoissonVAE(VAEModule):
    """Counts as latents, trained with finite differences along f's derivative.

    Args:
        latents: L, the number of variables.
        learn_prior: train the prior's log-rates.
        degree: see :class:`Fini`.
        num_samples: samples of z for one datum.
        latent: another one than :class:`Poisson`.
        estimator: another one than :class:`Fini`.
        shared: see :class:`VAEModule`.

    Source: Vafaii, Galor & Yates, *Poisson Variational Autoencoder*, NeurIPS 2024,
    arXiv:2405.14473; the estimator: He & Wu, 2026
    """

    own_latent_settings = ("latents", "learn_prior")
    own_prior_settings = ("learn_prior",)
    own_estimator_settings = ("degree", "num_samples")

    def __init__(
        self,
        *,
        latents: int = 64,
        learn_prior: bool = False,
        degree: Literal[2, 3] = 2,
        num_samples: int = 1,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(
            latent=latent or Poisson(latents, learn_prior),
            estimator=estimator or Fini(degree, num_samples),
            **shared,
        )
