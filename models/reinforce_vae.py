"""The REINFORCE VAE."""

from typing import Any, Literal

from vae_lab.estimators import Estimator, ScoreFunction
from vae_lab.latents import Latent, discrete_latent

from .base import VAEModule


class ReinforceVAE(VAEModule):
    """Discrete latents, trained with the score function: no gradient of the decoder in z is needed.

    Args:
        latents: L, the number of variables.
        categories: K, the classes of each variable; None (null): bits.
        learn_prior: train the prior's logits.
        baseline: what an image's log-likelihood is compared with.
        num_samples: samples of z for one datum; leave_one_out needs two.
        latent: another one than these categories or bits.
        estimator: another one than :class:`ScoreFunction`.
        shared: see :class:`VAEModule`.

    Source: Mnih & Gregor, *Neural Variational Inference and Learning in Belief Networks*, ICML
    2014, arXiv:1402.0030; leave-one-out: Kool, van Hoof & Welling, 2019
    """

    own_latent_settings = ("latents", "categories", "learn_prior")
    own_prior_settings = ("learn_prior",)
    own_estimator_settings = ("baseline", "num_samples")

    def __init__(
        self,
        *,
        latents: int = 20,
        categories: int | None = 10,
        learn_prior: bool = False,
        baseline: Literal["none", "moving_average", "learned", "leave_one_out"] = "leave_one_out",
        num_samples: int = 4,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(
            latent=latent or discrete_latent(latents, categories, learn_prior),
            estimator=estimator or ScoreFunction(num_samples, baseline),
            **shared,
        )
