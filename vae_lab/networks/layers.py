"""Layers of convolutional networks that torch does not have."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..transforms import is_transformed
from .base import from_zero

HEAD = 32  # the width of a head of attention


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 8 channels: one channel alone would be zero on a grid of one pixel."""
    return nn.GroupNorm(math.gcd(channels, max(channels // 8, 1)), channels)


class Residual(nn.Sequential):
    """The identity plus the layers in a row.

    Args:
        checkpointing: keep nothing of what the layers compute for the gradient, compute it again;
            but under torch.func, which cannot.
    """

    def __init__(self, *layers: nn.Module, checkpointing: bool = False) -> None:
        super().__init__(*layers)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled() and not is_transformed():
            inner = super().forward  # no layer of it draws noise
            change: Tensor = checkpoint(inner, x, use_reentrant=False, preserve_rng_state=False)
            return x + change
        return x + super().forward(x)

    def start_as_identity(self) -> None:
        """Sets the last layer to zero."""
        from_zero(self[-1])


class SubPixels(nn.Module):
    """Four channels become four pixels, [N, 4 C, h, w] -> [N, C, 2 h, 2 w].

    torch's PixelShuffle, which has no gradient where there are no pictures (N = 0).

    Source: Shi et al., *Real-Time Single Image and Video Super-Resolution Using an Efficient
    Sub-Pixel Convolutional Neural Network*, CVPR 2016, arXiv:1609.05158
    """

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3)  # [N, C, h, 2, w, 2]
        return pixels.flatten(4, 5).flatten(2, 3)


class DoublingConv(nn.Conv2d):
    r"""Doubles the pixels, then convolves them with 3 x 3 weights, in one.

    [N, C, h + 2, w + 2], of which the outermost pixels are those around the picture, to
    [N, C', 2 h, 2 w]. Three weights along an axis see only two different pixels of the small
    picture, so their sums are the weights of a transposed convolution of it:

    .. math:: k_j = w_{2 - j} + w_{3 - j}, \quad j = 0 \dots 3, \quad w_{-1} = w_3 = 0

    The numbers are the same but for rounding, of 4 / 9 of the multiplications, and the doubled
    picture is in no memory.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel(), self.bias, stride=2, padding=3)

    def kernel(self) -> Tensor:
        """Weights of the transposed convolution, [C, C', 4, 4]."""
        w = F.pad(self.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
        rows = w[..., 1:, :] + w[..., :-1, :]
        return rows[..., 1:] + rows[..., :-1]


class PlaceNorm(nn.LayerNorm):
    """Normalises the channels of each place by themselves, [N, C, h, w].

    Source: Ba, Kiros & Hinton, *Layer Normalization*, 2016, arXiv:1607.06450; at each place: Liu et
    al., *A ConvNet for the 2020s*, CVPR 2022, arXiv:2201.03545
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention of the places, [N, C, h, w], which do not know where they are.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, arXiv:1706.03762
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // HEAD, 1) if channels % HEAD == 0 else 1
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        *_, height, width = x.shape
        parts = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = parts.transpose(-1, -2).unbind(1)  # [N, heads, places, channels of a head]
        if torch.is_grad_enabled():  # the fused kernel has no second derivative
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            seen = scores.softmax(-1) @ v
        else:
            seen = F.scaled_dot_product_attention(q, k, v)
        return seen.transpose(-1, -2).flatten(1, 2).unflatten(-1, (height, width))


class PadToMultiple(nn.Module):
    """Repeats the last pixels, so that height and width are multiples of `size`.

    In memory the channels of a pixel lie beside each other afterwards, as :class:`PlaceNorm` leaves
    them: nothing behind it has to be laid out anew, and convolutions of few channels are faster.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        down, right = (-side % self.size for side in x.shape[-2:])
        if torch.compiler.is_exporting() or down or right:  # an export is for pictures of any size
            x = F.pad(x, (0, right, 0, down), mode="replicate")
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class ToPlaces(nn.Module):
    """[N, C, h, w] -> [N, h, w, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ToChannels(nn.Module):
    """[N, h, w, C] -> [N, C, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)
