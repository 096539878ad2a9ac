"""Likelihoods p(x | z): what the decoder's output means.

A likelihood owns the data's range, the shape of what the decoder must give, the log-probability of
a datum and the datum to show. It never sees z, only the decoder's output. A datum may have any
number of axes, be it a vector [D], a series [T, D] or an image [C, H, W]; only
:class:`DiscretizedLogisticMixture` knows that it is an image.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import PrintsArguments
from .cross_entropy import bernoulli_log_prob
from .inputs import Shape, readable

# The likelihoods, which a released model may name.
__all__ = ["Bernoulli", "ContinuousBernoulli", "DiscretizedLogisticMixture", "Gaussian"]

# Taylor coefficients in a**2, of log(a / tanh a) / a**2 and of (coth a - 1 / a) / a.
LOG_NORMALISER_SERIES = (1 / 3, -7 / 90, 62 / 2835, -127 / 18900, 146 / 66825)
LANGEVIN_SERIES = (1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555)


class Likelihood(PrintsArguments, nn.Module):
    """Distribution of a datum given the decoder's output.

    A subclass gives `pixel_log_prob`, or `image_log_prob` where it sums up faster, and `mean`,
    `sample` and `bias`. Where it has more parameters than the datum has values, it also gives
    `parameter_shape`, or `out_channels` if it needs nothing but more channels.

    Attributes:
        discrete: is it a probability mass, of binary or 8-bit values, and not a density.
        binary: do only 0 and 1 have a probability, so that values between them have none.
        data_axes: how many a datum has; 3, as an image has, until a VAE tells it by :meth:`bind`.
    """

    discrete: ClassVar[bool] = False
    binary: ClassVar[bool] = False
    data_axes = 3  # no part of its state
    _met = False  # has it met data; neither is this

    def __init__(self) -> None:
        super().__init__()  # without arguments: a release reads them from the signature

    def bind(self, shape: Shape) -> Shape:
        """Called by the VAE with the shape of a datum; returns that of the parameters."""
        if "data_axes" in vars(self) and self.data_axes != len(shape):
            raise ValueError(
                f"this {type(self).__name__} belongs to a VAE of data with {self.data_axes} axes, "
                f"make another one for data of shape {tuple(shape)}"
            )
        self.data_axes = len(shape)
        return self.parameter_shape(shape)

    def parameter_shape(self, shape: Shape) -> Shape:
        """The shape [*P] of the decoder's output for a datum of this shape [*X]."""
        return (self.out_channels(shape[0]), *shape[1:])

    def out_channels(self, channels: int) -> int:
        """The first number of [*P], given that of [*X]: for an image, C' and C."""
        return channels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) per datum, summed over all its axes, in nats.

        Args:
            params: the decoder's output, [*, *P].
            x: data in [0, 1], [*, *X]; its leading axes broadcast against those of `params`.
        """
        shape = x.shape[-self.data_axes :]
        expected = self.parameter_shape(shape)
        if params.shape[-len(expected) :] != expected:
            raise ValueError(
                f"params must end in {expected} for data of shape {tuple(shape)}, "
                f"got shape {tuple(params.shape)}"
            )
        ours, theirs = params.shape[: -len(expected)], x.shape[: -self.data_axes]
        if any(a != b and 1 not in (a, b) for a, b in zip(ours[::-1], theirs[::-1], strict=False)):
            raise ValueError(
                f"there must be as many data as params, got {list(theirs)} and {list(ours)}"
            )
        return self.image_log_prob(params, x.to(params.dtype))

    def image_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """The sum of :meth:`pixel_log_prob`, [*]; a datum need not be an image."""
        return self.sum_over_datum(self.pixel_log_prob(params, x))

    def sum_over_datum(self, terms: Tensor) -> Tensor:
        """The sum over all axes of a datum, [*, *X] -> [*]."""
        return terms.flatten(-self.data_axes).sum(-1)

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Terms of the log-probability, [*, *X]; an axis of which it is joint may have length 1."""
        raise NotImplementedError

    def mean(self, params: Tensor) -> Tensor:
        """The datum to show, in [0, 1], [*, *X]."""
        raise NotImplementedError

    def sample(self, params: Tensor) -> Tensor:
        """A draw of x, [*, *X]."""
        raise NotImplementedError

    def bias(self, mean: Tensor) -> Tensor:
        """Parameters [*P] to start from, given the mean of the training data [*X]."""
        raise NotImplementedError

    def meet(self, x: Tensor) -> None:
        """Inspects the first data that it meets, and no more: that would wait for the device."""
        if torch.compiler.is_compiling() or self._met:
            return
        self.inspect(x)
        self._met = (values := readable(x)) is not None and bool(values.any())  # no dry run's zeros

    def inspect(self, x: Tensor) -> None:
        """Checks x where its values can be read; not in a compiled function, for one."""
        if (values := readable(x)) is not None:
            self.check(values)

    def check(self, x: Tensor) -> None:
        """Refuse data outside [0, 1]; it reads values: call it at set-up, not at every step."""
        if x.numel() == 0:
            return
        low, high = x.min().item(), x.max().item()
        if low >= 0 and high <= 1:
            return
        worst = low if low < 0 else high
        name = type(self).__name__
        if not math.isfinite(worst):
            index, *place = (~x.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{name} needs values in [0, 1], the batch has {worst} at {place} of its datum "
                f"{index}: remove the broken data"
            )
        raise ValueError(
            f"{name} needs values in [0, 1], the batch has {worst:g}: {_advice(worst)}"
        )


class Bernoulli(Likelihood):
    r"""Values are coin flips with logits l.

    .. math:: \log p(x) = x l - \log(1 + e^l)

    For values between 0 and 1 this is the cross-entropy, no log-probability: use binarised data, or
    :class:`ContinuousBernoulli`.

    An image of two pixels: at logit 0 it may be black or white, at logit 9 it is almost surely
    white. The probability that both are white is 0.5 * 0.9999:

    >>> import torch
    >>> likelihood, params = Bernoulli(), torch.tensor([[[0.0, 9.0]]])  # [C, H, W]
    >>> likelihood.mean(params)
    tensor([[[0.5000, 0.9999]]])
    >>> likelihood.log_prob(params, torch.ones(1, 1, 2)).exp()
    tensor(0.4999)
    """

    discrete = binary = True

    def image_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return self.sum_over_datum(bernoulli_log_prob(*torch.broadcast_tensors(params, x)))

    def mean(self, params: Tensor) -> Tensor:
        """Probability of a one, which is a white pixel."""
        return params.sigmoid()

    def sample(self, params: Tensor) -> Tensor:
        return params.sigmoid().bernoulli()

    def bias(self, mean: Tensor) -> Tensor:
        """Logit of the mean, as if one image in 1000 were white and one black."""
        return torch.logit(_shrink(mean, 1e-3))


class ContinuousBernoulli(Likelihood):
    r"""Density on [0, 1] with natural parameter l, the logit.

    .. math:: \log p(x) = x l - \log(1 + e^l) + \log \frac{l}{\tanh(l / 2)}

    An image of two pixels: at logit 0 all greys are equally likely, with density 1; at logit 9 the
    light ones are the likely ones, and white has density 9.001:

    >>> import torch
    >>> likelihood, params = ContinuousBernoulli(), torch.tensor([[[0.0, 9.0]]])  # [C, H, W]
    >>> likelihood.mean(params)
    tensor([[[0.5000, 0.8890]]])
    >>> likelihood.log_prob(params, torch.tensor([[[0.3, 1.0]]])).exp()
    tensor(9.0011)

    Source: Loaiza-Ganem & Cunningham, *The continuous Bernoulli: fixing a pervasive error in
    variational autoencoders*, NeurIPS 2019, arXiv:1907.06845
    """

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logits, x = torch.broadcast_tensors(params, x)
        return bernoulli_log_prob(logits, x) + _log_normaliser(logits)

    def mean(self, params: Tensor) -> Tensor:
        r"""Expected value, :math:`\frac{1}{2} + \frac{1}{2} (\coth a - 1/a)` with a = l / 2."""
        small, inner, outer = _near_zero(params / 2)
        series = inner * _polynomial(inner.square(), LANGEVIN_SERIES)
        return 0.5 + 0.5 * torch.where(small, series, 1 / outer.tanh() - 1 / outer)

    def sample(self, params: Tensor) -> Tensor:
        # Inverse distribution function at -|l|, where nothing overflows; p(x; l) = p(1 - x; -l).
        negative = -params.abs().clamp(min=1e-6)
        x = (torch.rand_like(params) * negative.expm1()).log1p() / negative
        return torch.where(params > 0, 1 - x, x)

    def bias(self, mean: Tensor) -> Tensor:
        """Logits whose mean is the data's (by bisection), kept within about 100 of zero."""
        target = _shrink(mean, 1e-2)
        low, high = torch.full_like(target, -128), torch.full_like(target, 128)
        for _ in range(40):
            middle = (low + high) / 2
            below = self.mean(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low


class Gaussian(Likelihood):
    r"""Values are normal around the decoder's output, with one sigma for all of them.

    .. math:: \log p(x) = -\frac{(x - \mu)^2}{2 \sigma^2} - \log \sigma - \frac{1}{2} \log 2 \pi

    Args:
        sigma: the standard deviation, in units of the data's range [0, 1]; its first value
            if it is learned.
        learned: train log sigma; at the optimum sigma**2 is the mean squared error.

    The density of a value that is as expected is 0.399 / sigma, so it can be larger than 1, and its
    logarithm positive:

    >>> import torch
    >>> likelihood, params = Gaussian(sigma=0.1), torch.tensor([[[0.5]]])  # an image of one pixel
    >>> likelihood.log_prob(params, torch.tensor([[[0.5]]])).exp()
    tensor(3.9894)
    >>> likelihood.log_prob(params, torch.tensor([[[0.6]]])).exp()  # one sigma away
    tensor(2.4197)

    Source of the learned sigma: Rybkin, Daniilidis & Levine, *Simple and Effective VAE Training
    with Calibrated Decoders*, ICML 2021, arXiv:2006.13202
    """

    def __init__(self, sigma: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {sigma}")
        self.sigma = sigma
        self.learned = learned
        log_sigma = torch.tensor(math.log(sigma))
        if learned:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            # The constructor's argument says it all: nothing to save.
            self.register_buffer("log_sigma", log_sigma, persistent=False)

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        standardised = (x - params) * torch.exp(-self.log_sigma)
        return -standardised.square() / 2 - self.log_sigma - math.log(2 * math.pi) / 2

    def mean(self, params: Tensor) -> Tensor:
        """Mean of the values, clamped to what can be shown."""
        return params.clamp(0, 1)

    def sample(self, params: Tensor) -> Tensor:
        """A draw with its noise, which may leave [0, 1]."""
        return params + self.log_sigma.exp() * torch.randn_like(params)

    def bias(self, mean: Tensor) -> Tensor:
        """The mean datum."""
        return mean.clone()


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
        level = (x * 255).round().unsqueeze(-4)  # [*, 1, C, H, W]
        x = level / 127.5 - 1
        inverse_s = torch.exp(-log_s)
        shifts = [_shift(a, x.narrow(-3, 0, c)) for c in range(x.shape[-3])]
        offset = x - m - torch.cat(shifts, -3)  # [*, K, C, H, W]
        upper, lower = (offset + 1 / 255) * inverse_s, (offset - 1 / 255) * inverse_s
        # F(u) - F(l) = F(u) F(-l) (1 - exp(l - u)), each factor stable however far out or narrow.
        # An outermost bin keeps one tail: F(u) at 0, F(-l) at 255.
        black, white = level == 0, level == 255
        log_mass = (
            F.logsigmoid(upper).masked_fill(white, 0)
            + F.logsigmoid(-lower).masked_fill(black, 0)
            + torch.log(-torch.expm1(-2 / 255 * inverse_s)).masked_fill(black | white, 0)
        )
        return (log_pi + log_mass.sum(-3, keepdim=True)).logsumexp(-4)  # [*, 1, H, W]

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
        off_grid = x[((x * 255).round() - x * 255).abs() > 1e-2]
        if off_grid.numel() > 0:
            raise ValueError(
                f"{type(self).__name__} needs 8-bit values k / 255, the batch has "
                f"{off_grid[0].item():g}: round to (x * 255).round() / 255, or use a Gaussian or "
                "ContinuousBernoulli likelihood"
            )

    def _split(self, params: Tensor) -> tuple[Tensor, ...]:
        """log pi [*, K, 1, H, W], m and log s [*, K, C, H, W], coefficients [*, K, pairs, H, W]."""
        width = params.shape[-3] // self.components
        channels = (math.isqrt(8 * width + 1) - 3) // 2
        sizes = (1, channels, channels, channels * (channels - 1) // 2)
        params = params.unflatten(-3, (self.components, width))
        logits, m, log_s, a = params.split(sizes, -3)
        return logits.log_softmax(-4), m, log_s.clamp(-7, 7), a.tanh()


def _advice(worst: float) -> str:
    return "divide by 255" if worst > 2 else "shift and scale the data into it"


def _shrink(mean: Tensor, margin: float) -> Tensor:
    return mean * (1 - 2 * margin) + margin


def _near_zero(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A mask that is true where the series serves, and the arguments of series and closed form.

    Each argument is harmless where it is not used: torch.where would spread its NaN gradient.
    """
    small = a.abs() < 0.2
    return small, torch.where(small, a, 0.0), torch.where(small, 1.0, a)


def _polynomial(t: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = torch.zeros_like(t)
    for coefficient in reversed(coefficients):
        value = value * t + coefficient
    return value


def _log_normaliser(logits: Tensor) -> Tensor:
    """log(l / tanh(l / 2)) of the continuous Bernoulli, log 2 at l = 0."""
    small, inner, outer = _near_zero(logits / 2)
    squared = inner.square()
    series = squared * _polynomial(squared, LOG_NORMALISER_SERIES)
    return math.log(2) + torch.where(small, series, torch.log(outer / outer.tanh()))


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
