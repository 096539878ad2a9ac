"""Variational autoencoders, and every way to backpropagate through their samples.

One vocabulary of shapes holds in the whole library:

    S        Monte-Carlo or importance samples; always the leading axis
    B        batch
    L        latent variables
    K        categories of one latent variable
    D        width of a latent vector
    C H W    channels, height and width of an image
    *X       the shape of a datum: [C, H, W] of an image, [D] of a vector, [T, D] of a series
    *P       that of the decoder's output, the parameters of p(x|z)
    *E       that of a z

Data are floats in [0, 1]. Log-probabilities and objectives are in nats, one value per datum
[B], and are maximised.
"""

from .description import register
from .fitting import fit, fit_prior
from .vae import VAE

__version__ = "0.1.0"
__all__ = ["VAE", "__version__", "fit", "fit_prior", "register"]
