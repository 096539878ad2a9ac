"""A network that tells pictures of the data from those of a decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..arguments import PrintsArguments
from ..distributions import full_precision
from ..networks.base import widths


class PatchDiscriminator(PrintsArguments, nn.Module):
    """Pictures [*, C, H, W] -> a logit for each of their patches, [*, N], high for real ones.

    Each entry of `channels` is a convolution that halves height and width; a last one gives the
    logits. With three a patch is a square of 38 pixels. Their normalisation is over each picture
    alone, so that a picture does not notice its batch.

    Args:
        channels: of each layer.

    Source: Isola, Zhu, Zhou & Efros, *Image-to-Image Translation with Conditional Adversarial
    Networks*, CVPR 2017, arXiv:1611.07004, section 3.2.2
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.channels = channels = widths("channels", channels)
        with torch.random.fork_rng(devices=[]):  # a model has the same weights with it or without
            layers: list[nn.Module] = [nn.LazyConv2d(channels[0], 4, 2, 1), nn.LeakyReLU(0.2)]
            for a, b in zip(channels[:-1], channels[1:], strict=True):
                layers += [nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(1, b), nn.LeakyReLU(0.2)]
            layers.append(nn.Conv2d(channels[-1], 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        *leading, _, height, width = pictures.shape
        least = 2 ** len(self.channels)
        if min(height, width) < least:
            raise ValueError(
                f"a discriminator of {len(self.channels)} layers needs pictures of {least} x "
                f"{least} pixels, got {height} x {width}: use fewer entries in channels"
            )
        logits = self.layers(full_precision(pictures).flatten(0, -4))
        return full_precision(logits.reshape(*leading, -1))
