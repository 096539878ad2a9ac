"""Columns of categories, which are numbers from 0: two of them, many, or many in an order."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical

from .base import Column, Kind, parameter

UNSEEN = 0.5  # added to how often each category was seen, so that none is impossible


class Categorical(Kind):
    """One of K categories, whose logits the decoder gives."""

    needs = "the numbers of its values, from 0"
    discrete = True

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.categories = len(columns[0]["values"])
        self.width = self.encoded = self.shown = self.categories

    @classmethod
    def key(cls, column: Column) -> str:
        values = column.get("values") or ()
        if len(values) < 2 or len({repr(value) for value in values}) < len(values):
            raise ValueError(
                f"column {column['name']!r} is {column['kind']} and needs a list of at least 2 "
                f"different values, got {column.get('values')}"
            )
        return f"{column['kind']}_{len(values)}"

    def start(self, x: Tensor) -> Tensor:
        return self.frequencies(x).log()

    def legal(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < self.categories) & (x == x.round())

    def inputs(self, x: Tensor) -> Tensor:
        """One-hot."""
        return self.one_hot(x)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logits = self.logits(params)
        found = TorchCategorical(logits=logits, validate_args=False)
        return found.log_prob(x.long())

    def expected(self, params: Tensor) -> Tensor:
        return self.logits(params).softmax(-1)

    def show(self, expected: Tensor) -> Tensor:
        return expected.argmax(-1).to(expected.dtype)

    def sample(self, params: Tensor) -> Tensor:
        found = TorchCategorical(logits=self.logits(params), validate_args=False)
        return found.sample().to(params.dtype)

    def logits(self, params: Tensor) -> Tensor:
        """Of all categories, [*, n, K]."""
        return params

    def one_hot(self, x: Tensor) -> Tensor:
        """[*, n, K]; zeros where x is missing."""
        known = torch.arange(self.categories, device=x.device)
        return (x.unsqueeze(-1) == known).to(x.dtype)

    def frequencies(self, x: Tensor) -> Tensor:
        """Of the categories in x [N, n], [n, K]; none is 0."""
        seen = self.one_hot(x).sum(0) + UNSEEN
        return seen / seen.sum(-1, keepdim=True)


class Ordinal(Categorical):
    r"""One of K categories that have an order, by cumulative logits.

    .. math:: p(x \le k) = \sigma(c_k - \eta), \quad c_0 < c_1 < \dots < c_{K-2}

    The decoder gives :math:`\eta`; the cuts c are learned, those of a column once for all data.

    Source: McCullagh, *Regression Models for Ordinal Data*, Journal of the Royal Statistical
    Society B, 1980
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.width = self.encoded = 1
        n = len(columns)
        self.first_cut = parameter(0, n)
        self.log_gaps = parameter(0, n, self.categories - 2)

    def start(self, x: Tensor) -> Tensor:
        cuts = self.frequencies(x).cumsum(-1)[:, :-1].logit()
        self.first_cut.copy_(cuts[:, 0])
        self.log_gaps.copy_(cuts.diff(dim=-1).log())
        return x.new_zeros(len(self.names), 1)

    def inputs(self, x: Tensor) -> Tensor:
        """From -1 to 1, in equal steps."""
        return (2 * x / (self.categories - 1) - 1).unsqueeze(-1)

    def logits(self, params: Tensor) -> Tensor:
        """The logarithms of their probabilities, which sum to 1."""
        gaps = self.log_gaps.exp()
        above = torch.cat([gaps.new_zeros(len(gaps), 1), gaps.cumsum(-1)], -1)
        offset = self.first_cut.unsqueeze(-1) + above - params  # [*, n, K - 1]
        # F(u) - F(l) = F(u) F(-l) (1 - exp(l - u)); the outermost categories have one cut only.
        below_upper = F.pad(F.logsigmoid(offset), (0, 1))
        above_lower = F.pad(F.logsigmoid(-offset), (1, 0))
        between = F.pad((-(-gaps).expm1()).log(), (1, 1))
        return below_upper + above_lower + between


class Bernoulli(Kind):
    """0 or 1, whose logit the decoder gives. The value to show is the more probable one."""

    needs = "0 and 1"
    discrete = True

    @classmethod
    def key(cls, column: Column) -> str:
        values = column.get("values")
        if values is not None and (len(values) != 2 or values[0] == values[1]):
            raise ValueError(
                f"column {column['name']!r} is bernoulli and has 2 different values, got {values}"
            )
        return "bernoulli"

    def start(self, x: Tensor) -> Tensor:
        seen = (~x.isnan()).sum(0)
        return ((x.nansum(0) + UNSEEN) / (seen + 2 * UNSEEN)).logit().unsqueeze(-1)

    def legal(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)

    def inputs(self, x: Tensor) -> Tensor:
        """-1 or 1."""
        return (2 * x - 1).unsqueeze(-1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return self._distribution(params).log_prob(x)

    def expected(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def show(self, expected: Tensor) -> Tensor:
        return (expected.squeeze(-1) > 0.5).to(expected.dtype)

    def sample(self, params: Tensor) -> Tensor:
        return self._distribution(params).sample()

    def _distribution(self, params: Tensor) -> TorchBernoulli:
        return TorchBernoulli(logits=params.squeeze(-1), validate_args=False)
