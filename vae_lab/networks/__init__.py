"""Networks: recipes that build an encoder and the decoder that mirrors it.

A recipe is a frozen dataclass of plain numbers and names; its two methods build the modules once
the data's shape is known. `MLP` and `Linear` take data of any shape, be it a vector or a series;
`Conv` and `ResNet` take pictures, `TemporalConv` and `Transformer` series. `Grid` is fully
convolutional: it has latent variables at each place of a picture. A network knows nothing of
latents, likelihoods or objectives.
"""

from .base import Network as Network
from .conv import Conv
from .grid import Grid
from .linear import Linear
from .mlp import MLP
from .resnet import ResNet
from .series import TemporalConv, Transformer

# The recipes, which a released model may name.
__all__ = ["MLP", "Conv", "Grid", "Linear", "ResNet", "TemporalConv", "Transformer"]
