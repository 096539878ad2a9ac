"""What the library needs of the other processes, where there are any."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_aside = False


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place; x itself where there is only one."""
    if world_size() > 1:
        if _aside:
            x.zero_()
        dist.all_reduce(x)
    return x


@contextmanager
def aside() -> Iterator[None]:
    """In here this process takes part in sums over all of them, and adds nothing."""
    global _aside
    before, _aside = _aside, True
    try:
        yield
    finally:
        _aside = before


def each(x: Tensor) -> Tensor:
    """Every process's x, which has the same shape in all of them, [processes, *]."""
    gathered = torch.zeros(world_size(), *x.shape, dtype=x.dtype, device=x.device)
    gathered[rank()] = x
    return all_sum(gathered)


def timeout(minutes: float) -> timedelta:
    """How long a process waits for the others before it ends, as a config says it.

    Raises:
        ValueError: minutes is not positive and finite.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"timeout.minutes must be positive and finite, got {minutes}")
    return timedelta(minutes=minutes)
