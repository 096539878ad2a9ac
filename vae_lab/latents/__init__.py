"""Families of q(z|x), each with its prior and its KL."""

from .base import Latent
from .discrete import Bernoulli, Categorical, discrete_latent
from .gaussian import Gaussian
from .poisson import Poisson

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Latent", "Poisson", "discrete_latent"]
