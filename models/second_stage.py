"""A second stage: a prior for a model that is trained already."""

from typing import Any

from vae_lab.latents import Latent
from vae_lab.priors.base import check_learns

from .base import VAEModule


class SecondStage(VAEModule):
    r"""Trains the prior of a model that is frozen, on draws of its posteriors, anew in every epoch.

    .. math:: \max_\psi \mathbb{E}_{q(z|x)}[\log p_\psi(z)]

    The ELBO is what is maximised, of which nothing else can move. `task=prior` chooses it.

    Args:
        latent: that of the model.
        shared: see :class:`VAEModule`; there has to be a prior.

    Source: van den Oord et al., *Neural Discrete Representation Learning*, NeurIPS 2017,
    arXiv:1711.00937, section 3.3
    """

    def __init__(self, *, latent: Latent, **shared: Any) -> None:
        if shared.get("prior") is None:
            raise ValueError("a second stage needs a prior to train: type prior=NAME")
        super().__init__(latent=latent, **shared)
        check_learns(self.vae.prior)
