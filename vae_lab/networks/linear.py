"""The network without a hidden layer: the model is then a linear VAE."""

import math
from dataclasses import dataclass

from torch import nn

from ..dense import Dense
from .base import Encoder, Shape, check_shape, initialise


@dataclass(frozen=True)
class Linear:
    """The features are the datum's values themselves, and the decoder is one affine map.

    With a Gaussian latent and a Gaussian likelihood of learned sigma this is probabilistic PCA,
    whose optimum is known in closed form (Tipping & Bishop, 1999).
    """

    def encoder(self, shape: Shape) -> Encoder:
        """Module from [N, *shape], of any number of axes, to [N, F]; it has no parameters."""
        check_shape(shape)
        return Encoder(nn.Flatten(), features=math.prod(shape))

    def decoder(self, latent_size: int, shape: Shape) -> nn.Module:
        """Affine map from [N, latent_size] to [N, *shape]."""
        check_shape(shape, latent_size)
        output = Dense(latent_size, math.prod(shape))
        initialise(output, factor=1.0)
        return nn.Sequential(output, nn.Unflatten(1, shape))
