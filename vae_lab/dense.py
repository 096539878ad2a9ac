"""A linear layer that is as fast on AMD's CPUs as on Intel's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import onednn

LEAST = 1 << 22  # multiplications of a product, below which MKL is as fast


class Dense(nn.Linear):
    r"""torch's linear layer, :math:`y = x W^\top + b`, whose large products oneDNN computes.

    torch's wheels multiply matrices of float32 by MKL, which uses AVX-512 on Intel's CPUs only. On
    AMD's the same product takes twice the time that oneDNN needs for it, which torch brings along
    for convolutions. ``torch.backends.mkldnn.flags(enabled=False)`` leaves it to MKL.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _suits_onednn(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        y = _Product.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        return y.view(*x.shape[:-1], self.out_features)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        onednn.MKL_IS_SLOW
        and not _is_written_down()  # where sizes are no numbers
        and x.numel() * weight.shape[0] >= LEAST
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.shape[-1] == weight.shape[1]
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and (torch.compiler.is_compiling() or not _is_for_torch())
    )


def _is_written_down() -> bool:
    """Is the layer traced or exported, maybe for another machine."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _is_for_torch() -> bool:
    """Is the layer transformed by torch.func, or oneDNN switched off."""
    return torch._C._are_functorch_transforms_active() or not torch._C._get_mkldnn_enabled()


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
        return (
            _Product.apply(gradient, weight.t(), None) if by_x else None,
            _Product.apply(gradient.t(), x.t(), None) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )
