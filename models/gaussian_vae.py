"""The Gaussian VAE."""

from typing import Any

from vae_lab.estimators import Estimator, Reparameterization
from vae_lab.latents import Gaussian, Latent

from .base import VAEModule


class GaussianVAE(VAEModule):
    """Gaussian latents, trained through reparameterised samples.

    Args:
        latents: D, the width of z.
        learn_prior: train the prior's mean and scale.
        num_samples: samples of z for one datum.
        latent: another one than :class:`Gaussian`.
        estimator: another one than :class:`Reparameterization`.
        shared: see :class:`VAEModule`.

    Source: Kingma & Welling, *Auto-Encoding Variational Bayes*, ICLR 2014, arXiv:1312.6114
    """

    own_latent_settings = ("latents", "learn_prior")
    own_prior_settings = ("learn_prior",)
    own_estimator_settings = ("num_samples",)

    def __init__(
        self,
        *,
        latents: int = 20,
        learn_prior: bool = False,
        num_samples: int = 1,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(
            latent=latent or Gaussian(latents, learn_prior),
            estimator=estimator or Reparameterization(num_samples),
            **shared,
        )
