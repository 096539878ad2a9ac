"""The cross-entropy of bits given by their logits, several times as fast on a CPU as torch's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .transforms import is_transformed


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    r"""The log-probability of each x under its logit l, in nats; x may lie between 0 and 1.

    .. math:: \log p(x) = x l - \max(l, 0) - \log(1 + e^{-|l|})

    torch's takes log1p, which costs ten times a logarithm on a CPU, and there half of the forward
    pass of a small model. Here the last term is log sigmoid(|l|): either is right to 1e-7 in
    float32. The gradient is x - sigmoid(l) either way.

    Args:
        logits: any shape.
        x: of the same shape.
    """
    known = logits.dtype == x.dtype and logits.dtype in (torch.float32, torch.float64)
    if known and logits.is_cpu and logits.shape == x.shape and not is_transformed():
        return _BernoulliLogProb.apply(logits, x)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none")


class _BernoulliLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        rest = logits.abs().sigmoid_().log_()  # -log(1 + exp(-|l|))
        return (logits * x).sub_(logits.clamp_min(0)).add_(rest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, x = ctx.saved_tensors
        by_logits = gradient * (x - logits.sigmoid())
        return by_logits, gradient * logits if ctx.needs_input_grad[1] else None
