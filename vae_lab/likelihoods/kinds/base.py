"""What all kinds of columns have in common."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Column = dict[str, Any]  # name, kind, and of categories their values


class Kind(nn.Module):
    """All columns of one kind, x [*, n], in the user's units: one operation is for all of them.

    A category is its number, from 0. The axes of x and of the parameters [*, n, width] broadcast.

    Args:
        columns: which columns these are.

    Attributes:
        needs: what the values have to be, in words.
        discrete: is it a probability mass, and not a density.
        counts: is its first parameter the logarithm of a rate.
        width: how many parameters of a column the decoder gives.
        encoded: how many numbers the encoder sees of a column.
        shown: how many numbers tell the value to show, see :meth:`expected`.
    """

    needs: ClassVar[str]
    discrete: ClassVar[bool] = False
    counts: ClassVar[bool] = False
    width = encoded = shown = 1

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.names = [column["name"] for column in columns]

    @classmethod
    def key(cls, column: Column) -> str:
        """Columns with the same key are computed together.

        Raises:
            ValueError: there cannot be such a column.
        """
        if column.get("values") is not None:
            raise ValueError(f"column {column['name']!r} is {column['kind']} and has no values")
        return str(column["kind"])

    def start(self, x: Tensor) -> Tensor:
        """Learns the columns' units, and what else is theirs, of x [N, n], NaN where it is missing.

        Returns:
            Parameters [n, width] that do best if they are the same for all data, or nearly so.
        """
        raise NotImplementedError

    def legal(self, x: Tensor) -> Tensor:
        """Which values can be those of such columns, [*, n]."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> Tensor:
        """What the encoder sees, [*, n, encoded], about as large as 1."""
        raise NotImplementedError

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x) of each value, [*, n], in nats."""
        raise NotImplementedError

    def expected(self, params: Tensor) -> Tensor:
        """Expectations [*, n, shown] that tell the value to show: the mean, or of categories their
        probabilities. Averaged over many parameters they are those of the mixture."""
        raise NotImplementedError

    def show(self, expected: Tensor) -> Tensor:
        """The value to show, [*, n]: the mean of a number, the most probable category."""
        return expected.squeeze(-1)

    def sample(self, params: Tensor) -> Tensor:
        """A draw of x, [*, n]."""
        raise NotImplementedError


def parameter(value: float, *shape: int) -> nn.Parameter:
    """A parameter of the likelihood itself, which the decoder does not give."""
    return nn.Parameter(torch.full(shape, float(value)))


def leave_out(name: str) -> str:
    """What to type for a table without this column."""
    return f"leave it out by columns={{{name!r}: None}}, by command data.columns={{{name}: null}}"
