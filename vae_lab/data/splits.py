"""The held-out part of a data set."""

import torch
from torch import Tensor


def check_size(name: str, size: int | float) -> None:
    """A size is a count of examples, or a fraction of them."""
    if not (0 < size < 1 if isinstance(size, float) else size >= 1):
        raise ValueError(f"{name} must be a count or a fraction between 0 and 1, got {size}")


def count_of(total: int, size: int | float) -> int:
    """The number of examples that a size stands for, out of `total`."""
    return round(size * total) if isinstance(size, float) else min(size, total)


def split_rows(total: int, size: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers of a random part of that size, and of the rest.

    The part is in no order, so that its first few are of all kinds also where the files are in an
    order; the rest is in increasing order.
    """
    count = count_of(total, size)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count], order[count:].sort().values
