"""Values between black and white: coin flips, and the density on [0, 1] that looks like them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..cross_entropy import bernoulli_log_prob
from .base import Likelihood

# Taylor coefficients in a**2, of log(a / tanh a) / a**2 and of (coth a - 1 / a) / a.
LOG_NORMALISER_SERIES = (1 / 3, -7 / 90, 62 / 2835, -127 / 18900, 146 / 66825)
LANGEVIN_SERIES = (1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555)


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
