"""Priors p(z) other than the latent's own."""

from .base import Prior as Prior

# The priors, which a released model may name.
__all__: list[str] = []
