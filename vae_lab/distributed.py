"""Sums over all processes of a run, which also work where there is only one process."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_aside = False
_alone = False


def world_size() -> int:
    """The number of processes in this run, 1 without torch.distributed."""
    several = not _alone and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if several else 1


def rank() -> int:
    """The number of this process, from 0."""
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
    """Within this context the process joins sums over all processes, but adds only zeros."""
    global _aside
    before, _aside = _aside, True
    try:
        yield
    finally:
        _aside = before


@contextmanager
def alone() -> Iterator[None]:
    """Within this context the process is the only one: the others do not do what it does."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def is_aside() -> bool:
    """Is the process in :func:`aside`."""
    return _aside


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
