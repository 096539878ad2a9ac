"""Lightning modules: how a VAE is trained. One a file; file = config = command line = class."""

from .gaussian_vae import GaussianVAE
from .gumbel_vae import GumbelVAE
from .poisson_vae import PoissonVAE
from .reinforce_vae import ReinforceVAE
from .second_stage import SecondStage
from .semi_supervised_vae import SemiSupervisedVAE

__all__ = [
    "GaussianVAE",
    "GumbelVAE",
    "PoissonVAE",
    "ReinforceVAE",
    "SecondStage",
    "SemiSupervisedVAE",
]
