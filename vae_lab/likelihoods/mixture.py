"""8-bit colours by a mixture of logistics."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import Shape
from .base import Likelihood
from .eight_bits import check_levels, levels, log_mass


class DiscretizedLogisticMixture(Likelihood):
    r"""Mass of 8-bit colours of images: a mixture of logistics, each integrated over a value's bin.

    .. math:: p(x) = \sum_k \pi_k \prod_c \big[ F((x_c + b - \mu_{kc}) / s_{kc})
                  - F((x_c - b - \mu_{kc}) / s_{kc}) \big], \quad
              \mu_{kc} = m_{kc} + \sum_{j < c} \tanh(a_{kcj}) x_j

    with F the sigmoid, x rescaled to [-1, 1] and b = 1 / 255 half a bin; the outermost bins extend
    to infinity, so the 256 masses sum to 1. The channels of a pixel share the component k, and each
    depends on those before it. The decoder gives, per component: a logit, then m, log s (kept in
    [-7, 7]) and a (in the order 10, 20, 21, 30, ...).

    Args:
        components: number of logistics in the mixture.

    The decoder gives 10 numbers for each component and pixel of a colour image, 3 if it is grey.
    The masses of all 256 greys sum to 1:

    >>> import torch
    >>> likelihood = DiscretizedLogisticMixture(components=5)
    >>> likelihood.parameter_shape((3, 8, 8)), likelihood.parameter_shape((1, 8, 8))
    ((50, 8, 8), (15, 8, 8))
    >>> greys = (torch.arange(256) / 255).reshape(256, 1, 1, 1)  # 256 images of one pixel
    >>> print(f"{likelihood.log_prob(torch.zeros(15, 1, 1), greys).exp().sum():.4f}")
    1.0000

    Source: Salimans, Karpathy, Chen & Kingma, *PixelCNN++*, ICLR 2017, sections 2.1 and 2.2,
    arXiv:1701.05517
    """

    discrete = True

    def __init__(self, components: int = 10) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components

    def parameter_shape(self, shape: Shape) -> Shape:
        """[C', H, W] for an image [C, H, W]; other data has no colours, and is refused."""
        if len(shape) != 3:
            raise ValueError(
                f"{type(self).__name__} is for images [C, H, W], got data of shape {tuple(shape)}: "
                "use a Gaussian or ContinuousBernoulli likelihood"
            )
        return super().parameter_shape(shape)

    def out_channels(self, channels: int) -> int:
        """Per component 1 + 2 C + C (C - 1) / 2 = (C + 1) (C + 2) / 2."""
        return self.components * (channels + 1) * (channels + 2) // 2

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_pi, m, log_s, a = self._split(params)
        level = levels(x).unsqueeze(-4)  # [*, 1, C, H, W]
        x = level / 127.5 - 1
        shifts = [_shift(a, x.narrow(-3, 0, c)) for c in range(x.shape[-3])]
        offset = x - m - torch.cat(shifts, -3)  # [*, K, C, H, W]
        mass = log_mass(offset, torch.exp(-log_s), level, half=1 / 255)
        return (log_pi + mass.sum(-3, keepdim=True)).logsumexp(-4)  # [*, 1, H, W]

    def mean(self, params: Tensor) -> Tensor:
        """Expected colour; exact up to rounding in the first channel.

        Later channels take the component's expectation of the earlier ones for their values.
        """
        log_pi, m, log_s, a = self._split(params)
        x = _in_turn(m, a, lambda mu, c: _clipped_mean(mu, log_s.narrow(-3, c, 1)))
        return (log_pi.exp() * (x + 1) / 2).sum(-4)

    def sample(self, params: Tensor) -> Tensor:
        log_pi, m, log_s, a = self._split(params)
        gumbel = -torch.empty_like(log_pi).exponential_().log()
        k = (log_pi + gumbel).argmax(-4, keepdim=True)  # [*, 1, 1, H, W]
        m, log_s, a = (t.take_along_dim(k, -4) for t in (m, log_s, a))
        noise = log_s.exp() * torch.rand_like(log_s).logit()
        x = _in_turn(m, a, lambda mu, c: _nearest_level(mu + noise.narrow(-3, c, 1)))
        return ((x + 1) / 2).squeeze(-4)

    def bias(self, mean: Tensor) -> Tensor:
        """Every component centred on the mean image, all else zero."""
        params = mean.new_zeros(self.out_channels(mean.shape[-3]), *mean.shape[-2:])
        params.unflatten(-3, (self.components, -1))[:, 1 : 1 + mean.shape[-3]] = 2 * mean - 1
        return params

    def check(self, x: Tensor) -> None:
        """Refuse images outside [0, 1] and values that are not k / 255."""
        super().check(x)
        check_levels(type(self).__name__, x)

    def _split(self, params: Tensor) -> tuple[Tensor, ...]:
        """log pi [*, K, 1, H, W], m and log s [*, K, C, H, W], coefficients [*, K, pairs, H, W]."""
        width = params.shape[-3] // self.components
        channels = (math.isqrt(8 * width + 1) - 3) // 2
        sizes = (1, channels, channels, channels * (channels - 1) // 2)
        params = params.unflatten(-3, (self.components, width))
        logits, m, log_s, a = params.split(sizes, -3)
        return logits.log_softmax(-4), m, log_s.clamp(-7, 7), a.tanh()


def _shift(a: Tensor, earlier: Tensor) -> Tensor:
    """The shift of the next channel's location by the c earlier ones, [*, K, 1, H, W]."""
    c = earlier.shape[-3]
    return (a.narrow(-3, c * (c - 1) // 2, c) * earlier).sum(-3, keepdim=True)


def _in_turn(m: Tensor, a: Tensor, colour: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Channels [*, K, C, H, W], each coloured from its location given the ones before it."""
    x = colour(m.narrow(-3, 0, 1), 0)
    for c in range(1, m.shape[-3]):
        x = torch.cat([x, colour(m.narrow(-3, c, 1) + _shift(a, x), c)], -3)
    return x


def _clipped_mean(mu: Tensor, log_s: Tensor) -> Tensor:
    """E[clip(X, -1, 1)] of a logistic X: the integral of 1 - F over [-1, 1], less 1."""
    s = log_s.exp()
    return s * (F.softplus((mu + 1) / s) - F.softplus((mu - 1) / s)) - 1


def _nearest_level(x: Tensor) -> Tensor:
    """The nearest of the 256 colours in [-1, 1]."""
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
