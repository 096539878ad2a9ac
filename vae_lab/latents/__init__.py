"""Families of q(z|x), each with its prior and its KL."""

from .base import Latent as Latent
from .codebook import Codebook
from .correlated_gaussian import CorrelatedGaussian
from .discrete import Bernoulli, Categorical
from .discrete import Discrete as Discrete
from .discrete import Finite as Finite
from .discrete import discrete_latent as discrete_latent
from .fixed_codes import FSQ, LFQ
from .flow_gaussian import FlowGaussian
from .gaussian import Gaussian
from .hierarchical_gaussian import HierarchicalGaussian
from .poisson import Poisson
from .residual import ResidualCodebook

# The families, which a released model may name.
__all__ = [
    "FSQ",
    "LFQ",
    "Bernoulli",
    "Categorical",
    "Codebook",
    "CorrelatedGaussian",
    "FlowGaussian",
    "Gaussian",
    "HierarchicalGaussian",
    "Poisson",
    "ResidualCodebook",
]
