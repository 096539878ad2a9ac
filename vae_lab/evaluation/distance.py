"""How far two pictures are apart: in the features of a network, and in their structure (SSIM)."""

from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..arguments import PrintsArguments
from ..distributions import full_precision
from ..inputs import is_picture
from .features import in_colour, shipped

EPS = 1e-2  # in the squared length of features, which are of size 1, and may all be zero
SCALES = 3  # sizes of a picture: its own, its half, its quarter
SMALLEST_FOR_LPIPS = 32  # pixels along a side; smaller pictures are enlarged
REACH, SIGMA = 5, 1.5  # pixels, of the window of SSIM


class FeatureDistance(PrintsArguments, nn.Module):
    r"""The squared distance of pictures in the features of a network, at every place.

    .. math:: d(x, y) = \frac{1}{J} \sum_{j=1}^J \frac{1}{h_j w_j} \sum_{u, v}
              \big\| \hat\phi_j(x)_{uv} - \hat\phi_j(y)_{uv} \big\|^2, \qquad
              \hat\phi = \phi / (\|\phi\|^2 + \epsilon)^{1/2}

    with :math:`\phi_j(x)_{uv}` the channels that layer j has at a place. It is between 0 and 2, 0
    at x = y, and has a gradient everywhere, of 0 at x = y.

    The network is a constant: no parameter of it is trained, and no checkpoint holds it.

    Args:
        features: None, the network in the package
            (:class:`~vae_lab.evaluation.features.FeatureNetwork`), which sees each channel on its
            own and at the picture's size: three layers, fewer of pictures below 4 pixels.
            "multiscale", the same network at the picture's size, its half and its quarter, where
            the squared distance in a layer is divided by the mean of
            :math:`\|\phi_j(x)_{uv}\|^2 + \epsilon` over all places: errors count as much as they
            are large, and not most where a picture is flat. It may exceed 2.
            "lpips", LPIPS with VGG16, of pictures with three channels, or else of their grey; with
            weights that are downloaded once.

    Raises:
        ImportError: "lpips" needs a package that is not installed.
        FileNotFoundError: its weights could not be downloaded.

    Source: Zhang, Isola, Efros, Shechtman & Wang, *The Unreasonable Effectiveness of Deep Features
    as a Perceptual Metric*, CVPR 2018, arXiv:1801.03924, eq. 1, which also weighs the channels
    """

    def __init__(self, features: str | None = None) -> None:
        super().__init__()
        self.features = features
        # In a tuple: a module would have its weights trained, saved and sent to other processes.
        self._constant = (_network(features).eval(),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._constant[0]._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of pictures [*, C, H, W] with values in [0, 1], [*]; their leading axes
        broadcast."""
        if not is_picture(x.shape[-3:]):
            raise ValueError(f"pictures must have the shape [*, C, H, W], got {list(x.shape)}")
        distance: Tensor = self._constant[0](full_precision(x), full_precision(y))
        return distance


def _network(features: str | None) -> nn.Module:
    if features is None:
        return _Layers(shipped().trunk)
    if features == "multiscale":
        return _Multiscale(shipped().trunk)
    if features == "lpips":
        return _LPIPS()
    raise ValueError(f"features must be None, multiscale or lpips, got {features!r}")


class _Layers(nn.Module):
    """The distance in what each layer of a network of grey pictures hands on to the next one."""

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        convolutions = [layer for layer in trunk if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in trunk if isinstance(layer, nn.BatchNorm2d)]
        pairs = zip(convolutions, norms, strict=True)
        self.layers = nn.ModuleList(fuse_conv_bn_eval(*pair) for pair in pairs)
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.maps(x), self.maps(y), strict=True)
        return torch.stack([self.apart(a, b) for a, b in pairs]).mean(0)

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """What each layer has at each place, [*, C, F, h, w]."""
        grey = x.reshape(-1, 1, *x.shape[-2:])
        for layer in self.layers:
            grey, large = layer(grey).relu(), min(grey.shape[-2:]) > 1
            if large and layer is not self.layers[-1]:
                grey = F.max_pool2d(grey, 2)
            found = full_precision(grey)
            yield found.reshape(*x.shape[:-2], *found.shape[1:])
            if not large:
                return

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """How far unit vectors of these features are from each other, [*]."""
        a, b = (x * (x.square().sum(-3, keepdim=True) + EPS).rsqrt() for x in (a, b))
        return _squared_length(a - b)


class _Multiscale(_Layers):
    """The mean over several sizes of a picture: at its own one place sees 18 pixels at most."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found = [super().forward(x, y)]
        while len(found) < SCALES and min(x.shape[-2:]) > 1:
            x, y = _halved(x), _halved(y)
            found.append(super().forward(x, y))
        return torch.stack(found).mean(0)

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """Relative to the size that those of the first have in the whole picture."""
        return _squared_length(a - b) / (_squared_length(a) + EPS)


def _squared_length(features: Tensor) -> Tensor:
    """The mean over places and colours, [*, C, F, h, w] -> [*]."""
    return features.square().sum(-3).mean((-3, -2, -1))


def _halved(x: Tensor) -> Tensor:
    """Pictures [*, C, H, W] at half their height and width, by the means of 2 x 2 pixels."""
    return F.avg_pool2d(x.flatten(0, -3), 2).unflatten(0, x.shape[:-2])


class _LPIPS(nn.Module):
    """That of torchmetrics, with its weights of the channels."""

    @torch.random.fork_rng(devices=[])  # of the first weights, which are replaced
    def __init__(self) -> None:
        super().__init__()
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            made: Any = LearnedPerceptualImagePatchSimilarity("vgg", normalize=True)
        except ModuleNotFoundError as error:
            raise ImportError(
                "features=lpips needs torchmetrics and torchvision: "
                "pip install torchmetrics torchvision"
            ) from error
        except OSError as error:
            raise FileNotFoundError(
                f"the weights of VGG16 for features=lpips could not be downloaded ({error}); with "
                "them, no network is needed any more. features=null takes the network in the "
                "package"
            ) from error
        self.net = made.net.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        one, other = (self._enlarged(in_colour(p.flatten(0, -4))) for p in (x, y))
        found: Tensor = self.net(one, other, normalize=True)
        return full_precision(found).reshape(x.shape[:-3])

    def _enlarged(self, x: Tensor) -> Tensor:
        least = min(x.shape[-2:])
        if least >= SMALLEST_FOR_LPIPS:
            return x
        size = [side * SMALLEST_FOR_LPIPS // least for side in x.shape[-2:]]
        return F.interpolate(x, size, mode="bilinear")


def structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    r"""SSIM of pictures [B, C, H, W] with values in [0, 1], [B]; 1 for equal ones.

    .. math:: \frac{(2 \mu_x \mu_y + c_1) (2 \sigma_{xy} + c_2)}
              {(\mu_x^2 + \mu_y^2 + c_1) (\sigma_x^2 + \sigma_y^2 + c_2)}, \qquad
              c_1 = 0.01^2, \quad c_2 = 0.03^2

    with moments under a Gaussian window of 11 x 11 pixels and sigma 1.5 around each pixel, beyond
    the border those of the picture mirrored; the mean over pixels and channels, as torchmetrics has
    it.

    Source: Wang, Bovik, Sheikh & Simoncelli, *Image Quality Assessment: From Error Visibility to
    Structural Similarity*, IEEE TIP 2004, eq. 13
    """
    if min(x.shape[-2:]) <= REACH:
        least = REACH + 1
        raise ValueError(f"SSIM needs {least} x {least} pixels, got {list(x.shape[-2:])}")
    place = torch.arange(-REACH, REACH + 1, dtype=x.dtype, device=x.device)
    line = torch.softmax(-place.square() / (2 * SIGMA**2), 0)
    window = (line[:, None] * line)[None, None]
    count = len(x)
    x, y = (p.reshape(-1, 1, *p.shape[-2:]) for p in (x, y))
    x, y = (F.pad(p, [REACH] * 4, mode="reflect") for p in (x, y))
    maps = torch.cat([x, y, x * x, y * y, x * y])
    mean_x, mean_y, xx, yy, xy = F.conv2d(maps, window).chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    like = (2 * product + c1) * (2 * (xy - product) + c2)
    found = like / ((squares + c1) * (xx + yy - squares + c2))
    return found.reshape(count, -1).mean(1)
