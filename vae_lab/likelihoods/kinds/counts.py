"""Columns of counts: Poisson, or spread wider, or with more zeros."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import NegativeBinomial as TorchNegativeBinomial
from torch.distributions import Poisson as TorchPoisson

from ..units import units
from .base import Column, Kind, parameter

LOG_RATES = (-30.0, 30.0)  # beyond them a rate stays, so that its exponential is a number
LEAST_SEEN = 0.5  # of a count in all rows together, so that its rate is above 0
DISPERSIONS = (1e-2, 1e4)  # to start from; at the upper end it is a Poisson, or nearly so


class Poisson(Kind):
    """Counts whose log-rate the decoder gives. What the encoder sees is log(1 + x), standardised.

    Log-probabilities are computed in double precision: log x! of a large count has more digits
    than float32. (Apple's GPUs know no other, and lose the last of them.)
    """

    needs = "counts, which are whole numbers from 0"
    discrete = counts = True
    loc: Tensor
    scale: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.register_buffer("loc", torch.zeros(len(columns)))
        self.register_buffer("scale", torch.ones(len(columns)))

    def start(self, x: Tensor) -> Tensor:
        loc, scale = units(x.log1p())
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(scale > 0, scale, 1))
        return _mean(x).log().unsqueeze(-1)

    def legal(self, x: Tensor) -> Tensor:
        return x.isfinite() & (x >= 0) & (x == x.round())

    def inputs(self, x: Tensor) -> Tensor:
        return ((x.log1p() - self.loc) / self.scale).unsqueeze(-1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        precise = _precise(params)
        return self.log_mass(precise, x.to(precise.dtype)).to(params.dtype)

    def expected(self, params: Tensor) -> Tensor:
        return params[..., :1].clamp(*LOG_RATES).exp()

    def sample(self, params: Tensor) -> Tensor:
        return self.distribution(_precise(params)).sample().to(params.dtype)

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        return self.distribution(params).log_prob(x)

    def distribution(self, params: Tensor) -> Distribution:
        log_rate = params[..., 0].clamp(*LOG_RATES)
        return TorchPoisson(log_rate.exp(), validate_args=False)


class NegativeBinomial(Poisson):
    r"""Counts of mean :math:`\mu` and variance :math:`\mu + \mu^2 / r`: Poisson for large r.

    The decoder gives :math:`\log \mu`; the dispersion r is learned, one for each column.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.log_dispersion = parameter(0, len(columns))

    def start(self, x: Tensor) -> Tensor:
        mean = _mean(x)
        excess = (x - mean).square().nanmean(0) - mean
        dispersion = mean.square() / excess.clamp(min=torch.finfo(x.dtype).tiny)
        self.log_dispersion.copy_(dispersion.clamp(*DISPERSIONS).log())
        return super().start(x)

    def distribution(self, params: Tensor) -> Distribution:
        log_rate = params[..., 0].clamp(*LOG_RATES)
        log_r = self.log_dispersion.to(params.dtype).clamp(*LOG_RATES)
        return TorchNegativeBinomial(log_r.exp(), logits=log_rate - log_r, validate_args=False)


class _ZeroInflated(Poisson):
    r"""Zero with the probability :math:`\pi`, and else a count, which may be zero too.

    The decoder gives the log-rate of the count and the logit of :math:`\pi`.
    """

    width = 2

    def start(self, x: Tensor) -> Tensor:
        """As many zeros as were seen, and the mean that was seen."""
        params = super().start(x)
        zeros = (x == 0).sum(0) / (~x.isnan()).sum(0).clamp(min=1)
        without = self.log_mass_of_count(params, torch.zeros_like(zeros)).exp()
        inflation = ((zeros - without) / (1 - without).clamp(min=1e-3)).clamp(0.01, 0.99)
        return torch.stack([params[:, 0] - (1 - inflation).log(), inflation.logit()], -1)

    def expected(self, params: Tensor) -> Tensor:
        return super().expected(params) * (-params[..., 1:]).sigmoid()

    def sample(self, params: Tensor) -> Tensor:
        return super().sample(params) * (-params[..., 1]).sigmoid().bernoulli()

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        inflation = params[..., 1]
        count = F.logsigmoid(-inflation) + self.log_mass_of_count(params, x)
        return torch.where(x == 0, torch.logaddexp(F.logsigmoid(inflation), count), count)

    def log_mass_of_count(self, params: Tensor, x: Tensor) -> Tensor:
        """Where it is not inflated."""
        return self.distribution(params).log_prob(x)


class ZeroInflatedPoisson(_ZeroInflated):
    """A Poisson with more zeros."""


class ZeroInflatedNegativeBinomial(_ZeroInflated, NegativeBinomial):
    """A negative binomial with more zeros."""


def _mean(x: Tensor) -> Tensor:
    """Of the counts x [N, n], [n]; above 0 also where there are none."""
    return x.nanmean(0).clamp(min=LEAST_SEEN / len(x))


def _precise(params: Tensor) -> Tensor:
    return params if params.device.type == "mps" else params.double()
