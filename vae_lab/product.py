"""The product of :mod:`vae_lab.dense` as an operator that torch.compile calls and leaves alone.

It would take oneDNN's own for a layer of a frozen model. This imports the compiler: slowly, so only
where something is being compiled.
"""

import torch
from torch import Tensor

from . import onednn


@torch.library.custom_op("vae_lab::product", mutates_args=())
def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return onednn.product(x, weight, bias)


@product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])
