"""A linear layer that is as fast on AMD's CPUs as on Intel's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import onednn
from .transforms import is_transformed

LEAST = 1 << 25  # multiplications of a product, below which MKL is as fast


class Dense(nn.Linear):
    r"""torch's linear layer, :math:`y = x W^\top + b`, whose large products oneDNN computes.

    torch's wheels multiply matrices of float32 by MKL, which uses AVX-512 on Intel's CPUs only. On
    AMD's the same product takes twice the time that oneDNN needs for it, which torch brings along
    for convolutions. ``torch.backends.mkldnn.flags(enabled=False)`` leaves it to MKL.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias  # functional_call may give others, of other sizes
        if not _suits_onednn(x, weight, bias):
            return F.linear(x, weight, bias)
        y = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
        return y.view(*x.shape[:-1], weight.shape[0])


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        onednn.MKL_IS_SLOW
        and type(x) is Tensor  # torch.fx gives what has no sizes
        and not _is_written_down()  # where sizes are no numbers
        and x.numel() * weight.shape[0] >= LEAST
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.layout == weight.layout == torch.strided
        and x.shape[-1:] == weight.shape[1:]
        and type(weight) in (Tensor, nn.Parameter)
        and (bias is None or _is_plain(bias, weight))
        and not torch.is_autocast_enabled("cpu")
        and not _is_for_torch()
    )


def _is_plain(bias: Tensor, weight: Tensor) -> bool:
    """oneDNN reads a bias as if its numbers were one behind the other, wherever they are."""
    return bias.dtype == weight.dtype and bias.shape == weight.shape[:1] and bias.is_contiguous()


def _is_written_down() -> bool:
    """Whether the layer is being traced or exported, maybe for another machine."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _is_for_torch() -> bool:
    """Whether the layer is transformed, or oneDNN is off; a compiled function cannot ask."""
    off = not torch.compiler.is_compiling() and not torch._C._get_mkldnn_enabled()
    return off or is_transformed()


class _Product(torch.autograd.Function):
    """x [N, I], w [O, I], b [O] -> x w^T + b [N, O]; its derivatives are such products again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if torch.compiler.is_compiling():
            from .product import product

            return product(x, weight, bias)
        return onednn.product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        product = F.linear if _is_for_torch() else _Product.apply  # vmap maps over gradients, too
        return (
            product(gradient, weight.t(), None) if by_x else None,
            product(gradient.t(), x.t(), None) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )
