"""Lightning modules: how a VAE is trained. One a file; file = config = command line = class."""

from .fsq_vae import FSQVAE
from .gaussian_vae import GaussianVAE
from .gumbel_vae import GumbelVAE
from .lfq_vae import LFQVAE
from .poisson_vae import PoissonVAE
from .reinforce_vae import ReinforceVAE
from .second_stage import SecondStage
from .semi_supervised_vae import SemiSupervisedVAE
from .vq_vae import VQVAE

__all__ = [
    "FSQVAE",
    "GaussianVAE",
    "GumbelVAE",
    "LFQVAE",
    "PoissonVAE",
    "ReinforceVAE",
    "SecondStage",
    "SemiSupervisedVAE",
    "VQVAE",
]
