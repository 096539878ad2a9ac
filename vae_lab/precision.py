"""Modules whose numbers keep their precision where a model is cast to 16 bits."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from .distributions import full_precision


class FullPrecision(nn.Module):
    """A module whose parameters and buffers are float32 at least, with all that is in it.

    What :meth:`~torch.nn.Module.bfloat16` and :meth:`~torch.nn.Module.half` leave of other modules
    is too little for averages that move on by a hundredth, and for the determinant of a flow.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def kept(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            of_16_bits = full_precision(new) is not new
            return tensor.to(new.device, torch.float32) if of_16_bits else new

        return super()._apply(kept, recurse)
