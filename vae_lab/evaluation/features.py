"""Features of images: the numbers by which sets of images are compared.

The network that comes with the package is small and knows clothes and digits only. Distances in its
features rank models on one data set; they are not the FIDs of papers, which take Inception's.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("features.safetensors")
CLASSES = 20  # ten kinds of clothes, then ten digits
SIDE = 28

Features = Callable[[Tensor], Tensor]  # images [N, C, H, W] in [0, 1] -> [N, F]


class FeatureNetwork(nn.Module):
    """A convolutional classifier; its features are what its last layer sees, [N, 96].

    Images of any size and number of channels become grey, by the mean over their channels, and
    28 x 28, by (antialiased) bilinear resizing: finer detail and colour do not count.

    The weights in the package are those of `python benchmarks/train_features.py`, which was given
    the training images of Fashion-MNIST (MIT licence) and of scikit-learn's digits (CC BY 4.0), and
    tells the 20 classes apart with accuracy 0.903 on the test images of the first and 0.966 on
    those of the second. They are under the package's own licence.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_halve(1, 32), *_halve(32, 64), *_halve(64, 96, pool=nn.AdaptiveAvgPool2d(1))
        )
        self.classifier = nn.Linear(96, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean(1, keepdim=True)
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.trunk(x).flatten(1)


def _halve(a: int, b: int, pool: nn.Module | None = None) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(a, b, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(b), nn.ReLU(), pool or nn.MaxPool2d(2)


@torch.no_grad()
def extract(images: Tensor, features: Features | str | None = None, batch: int = 250) -> Tensor:
    """The features [N, F] of images [N, C, H, W] in [0, 1], in double precision on the CPU.

    Args:
        images: on the device to run on.
        features: None, the network in the package; "inception", torchmetrics' InceptionV3 with its
            2048 features, whose weights are downloaded once; or anything from images to features.
        batch: images at a time.

    Raises:
        ImportError: "inception" needs a package that is not installed.
        FileNotFoundError: its weights could not be downloaded.
    """
    network = choose(features, images.device)
    return torch.cat([network(x).cpu().double() for x in images.split(batch)])


def choose(features: Features | str | None, device: torch.device | str = "cpu") -> Features:
    """The network that :func:`extract` takes."""
    if features is None:
        return shipped().to(device)
    if features == "inception":
        network = _inception().to(device)
        return lambda x: network(in_colour(x).clamp(0, 1).mul(255).round().byte())
    if isinstance(features, str):
        raise ValueError(f"features must be None, inception or a function, got {features!r}")
    return features


@cache
@torch.random.fork_rng(devices=[])  # of the first weights, which are replaced
def shipped() -> FeatureNetwork:
    """The network in the package, one for all."""
    network = FeatureNetwork()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


@cache
@torch.random.fork_rng(devices=[])
def _inception() -> nn.Module:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return cast(nn.Module, FrechetInceptionDistance(feature=2048).inception)
    except ModuleNotFoundError as error:
        raise ImportError(
            "features=inception needs torchmetrics and torch-fidelity: "
            "pip install torchmetrics torch-fidelity"
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"the weights for features=inception could not be downloaded ({error}); with them, no "
            "network is needed any more. features=None takes the network in the package"
        ) from error


def in_colour(x: Tensor) -> Tensor:
    """Images with three channels; any other number of them as grey."""
    return x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
