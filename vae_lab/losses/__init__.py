"""Objectives of pictures that are sharp: the ELBO, and losses beside it that are no bounds.

What they add is a function of z like log p(x|z), and averaged with it by the same estimator. The
ELBO in the log is the ELBO, without them.
"""

from .adversarial import Adversarial
from .discriminator import PatchDiscriminator
from .perceptual import Perceptual

__all__ = ["Adversarial", "PatchDiscriminator", "Perceptual"]
