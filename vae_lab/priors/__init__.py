"""Priors p(z) other than the latent's own, which is fixed, or learned with `learn_prior`."""

from .autoregressive import Autoregressive
from .base import Prior as Prior
from .flow import Flow
from .mixture import Mixture, Vamp
from .standard import Standard

# The priors, which a released model may name.
__all__ = ["Autoregressive", "Flow", "Mixture", "Standard", "Vamp"]
