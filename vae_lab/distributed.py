"""What the library needs of the other processes, where there are any."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place; x itself where there is only one."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def each(x: Tensor) -> Tensor:
    """Every process's x, which has the same shape in all of them, [processes, *]."""
    gathered = torch.zeros(world_size(), *x.shape, dtype=x.dtype, device=x.device)
    gathered[rank()] = x
    return all_sum(gathered)
