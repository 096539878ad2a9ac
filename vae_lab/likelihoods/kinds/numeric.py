"""Columns of numbers: each around what the decoder says, and as far off as the column learns."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.distributions import StudentT as TorchStudentT

from ..units import units
from .base import Column, Kind, leave_out, parameter

START_DOF = 5.0  # of a Student-t


class Gaussian(Kind):
    r"""Normal around the decoder's output, with one sigma a column.

    .. math:: \log p(x) = \log N\Big(\frac{x - m}{s}; \mu, \sigma^2\Big) - \log s

    with m and s the mean and the standard deviation of the training data.
    """

    needs = "finite numbers"
    loc: Tensor
    scale: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.register_buffer("loc", torch.zeros(len(columns)))
        self.register_buffer("scale", torch.ones(len(columns)))
        self.log_sigma = parameter(0, len(columns))

    def start(self, x: Tensor) -> Tensor:
        loc, scale = units(self.transform(x))
        for name, constant in zip(self.names, (scale == 0).tolist(), strict=True):
            if constant:
                raise ValueError(
                    f"column {name!r} has the same value in all rows: {leave_out(name)}"
                )
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self.log_sigma.zero_()
        return x.new_zeros(len(self.names), self.width)

    def legal(self, x: Tensor) -> Tensor:
        return x.isfinite()

    def inputs(self, x: Tensor) -> Tensor:
        return self.standardised(x).unsqueeze(-1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_density = self.distribution(params.squeeze(-1)).log_prob(self.standardised(x))
        return log_density - self.log_slope(x)

    def expected(self, params: Tensor) -> Tensor:
        return self.loc.unsqueeze(-1) + self.scale.unsqueeze(-1) * params

    def sample(self, params: Tensor) -> Tensor:
        return self.loc + self.scale * self.distribution(params.squeeze(-1)).sample()

    def distribution(self, mu: Tensor) -> Distribution:
        """Of the standardised value."""
        return Normal(mu, self.log_sigma.exp(), validate_args=False)

    def standardised(self, x: Tensor) -> Tensor:
        return (self.transform(x) - self.loc) / self.scale

    def transform(self, x: Tensor) -> Tensor:
        """What is standardised: x itself."""
        return x

    def log_slope(self, x: Tensor) -> Tensor:
        """The logarithm of dx over d(standardised x)."""
        return self.scale.log()


class StudentT(Gaussian):
    """Like a Gaussian, with tails in which outliers cost less; how heavy they are, each column
    learns. There is a mean: the degrees of freedom are more than 1."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.log_dof = parameter(math.log(START_DOF - 1), len(columns))  # less 1

    def start(self, x: Tensor) -> Tensor:
        """In units of the median and the quartiles, which no outlier moves."""
        params = super().start(x)
        quartiles = x.nanquantile(torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype).to(x.device), 0)
        scale = (quartiles[2] - quartiles[0]) / 1.349  # that of a normal is its deviation
        self.loc.copy_(quartiles[1])
        self.scale.copy_(torch.where(scale > 0, scale, self.scale))
        self.log_dof.fill_(math.log(START_DOF - 1))
        self.log_sigma.copy_(_log_scale(self.standardised(x), START_DOF))
        return params

    def distribution(self, mu: Tensor) -> Distribution:
        dof = 1 + self.log_dof.exp()
        return TorchStudentT(dof, mu, self.log_sigma.exp(), validate_args=False)


class LogNormal(Gaussian):
    """The logarithm is Gaussian. The value to show is the mean, which is above the median."""

    needs = "numbers above 0"

    def legal(self, x: Tensor) -> Tensor:
        return x.isfinite() & (x > 0)

    def transform(self, x: Tensor) -> Tensor:
        return x.clamp(min=torch.finfo(x.dtype).tiny).log()  # finite for a dry run's zeros

    def log_slope(self, x: Tensor) -> Tensor:
        return self.scale.log() + self.transform(x)

    def expected(self, params: Tensor) -> Tensor:
        variance = (self.scale * self.log_sigma.exp()).square()
        return (super().expected(params) + variance.unsqueeze(-1) / 2).exp()

    def sample(self, params: Tensor) -> Tensor:
        return super().sample(params).exp()


def _log_scale(x: Tensor, dof: float) -> Tensor:
    """The logarithm of the scale at which x [N, n] is most likely under a Student-t around 0, [n].

    A fixed point, by the weights of its mixture of normals (Lange, Little & Taylor, 1989).
    """
    squares = x.square()
    variance = squares.nanmean(0)
    for _ in range(50):
        variance = ((dof + 1) * squares / (dof + squares / variance)).nanmean(0)
    return variance.log() / 2
