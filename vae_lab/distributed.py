"""The one collective that the library needs."""

import torch.distributed as dist
from torch import Tensor


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place; x itself where there is only one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x
