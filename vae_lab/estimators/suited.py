"""The estimator that goes with a latent, where none is named."""

from typing import TYPE_CHECKING

from .base import Estimator
from .pathwise import Reparameterization
from .score_function import ScoreFunction
from .vector_quantization import VectorQuantization

if TYPE_CHECKING:
    from ..latents import Latent


def suited(latent: "Latent", num_samples: int | None = None) -> Estimator:
    """One without bias: through reparameterised samples where there are any, else the score
    function with a leave-one-out baseline. Of codes that are the nearest ones, and not drawn, that
    of the VQ-VAE.

    Args:
        num_samples: S; None: as few as it needs.
    """
    if latent.deterministic:
        return VectorQuantization()
    if latent.prior().has_rsample:
        return Reparameterization(num_samples or 1)
    return ScoreFunction(num_samples or 4)
