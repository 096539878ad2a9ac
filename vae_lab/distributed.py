"""Sums over all processes of a run, which also work where there is only one process."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_part = "equal"  # that this process takes in the sums; or "aside", or "alone"


def world_size() -> int:
    """The number of processes in this run, 1 without torch.distributed."""
    several = _part != "alone" and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if several else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place; x itself where there is only one."""
    if world_size() > 1:
        if is_aside():
            x.zero_()
        dist.all_reduce(x)
    return x


def aside() -> AbstractContextManager[None]:
    """Within this context the process joins sums over all processes, but adds only zeros."""
    return _taking("aside")


def alone() -> AbstractContextManager[None]:
    """Within this context the process is the only one: the others do not do what it does."""
    return _taking("alone")


@contextmanager
def _taking(part: str) -> Iterator[None]:
    global _part
    before, _part = _part, part
    try:
        yield
    finally:
        _part = before


def is_aside() -> bool:
    """Is the process in :func:`aside`."""
    return _part == "aside"


def each(x: Tensor) -> Tensor:
    """The x of every process, [processes, *]; x must have the same shape in all of them."""
    gathered = torch.zeros(world_size(), *x.shape, dtype=x.dtype, device=x.device)
    gathered[rank()] = x
    return all_sum(gathered)


def timeout(minutes: float) -> timedelta:
    """The time that a process waits for the others before it ends.

    Raises:
        ValueError: minutes is not positive and finite.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"timeout.minutes must be positive and finite, got {minutes}")
    return timedelta(minutes=minutes)
