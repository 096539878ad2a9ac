"""The VQ-VAE."""

from typing import Any

from vae_lab.estimators import Estimator, VectorQuantization
from vae_lab.latents import Codebook, Latent, ResidualCodebook
from vae_lab.schedules import Schedule

from .base import VAEModule


class VQVAE(VAEModule):
    """Codes from a learned codebook, of which the nearest is taken and its gradient copied.

    With `estimator=NAME` another code than the nearest may be drawn, by its distance.

    Args:
        latents: L, the number of codes.
        categories: K, of how many each is one.
        dim: D, of the codes.
        depth: R; more than 1: a :class:`ResidualCodebook`, of the nearest codes only.
        temperature: of the probabilities of codes; None (null): 0 for the model's own estimator,
            which takes the nearest code, and 1 for others.
        learn_temperature: see :class:`Codebook`, as for the next ones.
        shared: one codebook for all L.
        cosine: codes of length 1.
        decay: of the average that the codes follow; None (null): they follow the gradient.
        revive: where a code begins anew.
        learn_prior: train the prior's logits.
        commitment: see :class:`VectorQuantization`.
        rotation: likewise.
        latent: another one than :class:`Codebook`.
        estimator: another one than :class:`VectorQuantization`.
        others: see :class:`VAEModule`.

    Source: van den Oord, Vinyals & Kavukcuoglu, *Neural Discrete Representation Learning*, NeurIPS
    2017, arXiv:1711.00937
    """

    own_latent_settings = (
        "latents",
        "categories",
        "dim",
        "depth",
        "temperature",
        "learn_temperature",
        "shared",
        "cosine",
        "decay",
        "revive",
        "learn_prior",
    )
    own_prior_settings = ("learn_prior",)
    own_estimator_settings = ("commitment", "rotation")

    def __init__(
        self,
        *,
        latents: int = 1,
        categories: int = 512,
        dim: int = 8,
        depth: int = 1,
        temperature: float | Schedule | None = None,
        learn_temperature: bool = False,
        shared: bool = False,
        cosine: bool = False,
        decay: float | None = 0.9,
        revive: float = 0.1,
        learn_prior: bool = False,
        commitment: float = 1.0,
        rotation: bool = False,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        **others: Any,
    ) -> None:
        estimator = estimator or VectorQuantization(commitment, rotation)
        books = {"shared": shared, "decay": decay, "revive": revive, "learn_prior": learn_prior}
        if depth != 1:
            if latent is None and not isinstance(estimator, VectorQuantization):
                raise ValueError(
                    f"depth={depth} adds up nearest codes, which only vector_quantization trains: "
                    "leave out estimator, or depth"
                )
            drawn = {"temperature": temperature, "learn_temperature": learn_temperature}
            for name, value in (drawn | {"cosine": cosine, "rotation": rotation}).items():
                if value:
                    raise ValueError(
                        f"depth={depth} adds up nearest codes as they are: leave out {name}={value}"
                    )
            latent = latent or ResidualCodebook(latents, depth, categories, dim, **books)
        if latent is None:
            drawn_at = temperature_for(estimator, temperature)
            book = (latents, categories, dim, drawn_at, learn_temperature)
            latent = Codebook(*book, cosine=cosine, **books)
        super().__init__(latent=latent, estimator=estimator, **others)


def temperature_for(estimator: Estimator, temperature: float | Schedule | None) -> float | Schedule:
    """That of the codes, unless one is given: 0, the nearest, for the estimator that trains these,
    and 1 for all others, which draw."""
    if temperature is None:
        return 0.0 if isinstance(estimator, VectorQuantization) else 1.0
    return temperature
