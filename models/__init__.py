"""Lightning modules: how a VAE is trained. One a file; file = config = command line = class."""

from .gaussian_vae import GaussianVAE
from .gumbel_vae import GumbelVAE
from .reinforce_vae import ReinforceVAE

__all__ = ["GaussianVAE", "GumbelVAE", "ReinforceVAE"]
