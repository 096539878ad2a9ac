"""The cross-entropy of bits given by their logits, several times as fast on a CPU as torch's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    r"""The log-probability of each x under its logit l, in nats; x may lie between 0 and 1.

    .. math:: \log p(x) = x l - \max(l, 0) - \log(1 + e^{-|l|})

    torch's takes log1p, which costs ten times a logarithm on a CPU, and there half of the forward
    pass of a small model. The sum 1 + exp(-|l|) is as good as what is added to it: either is right
    to 1e-7 in float32. The gradient is x - sigmoid(l) either way.

    Args:
        logits: any shape.
        x: of the same shape.
    """
    if logits.device.type == "cpu":
        return _BernoulliLogProb.apply(logits, x)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none")


class _BernoulliLogProb(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:
        rest = logits.abs().neg_().exp_().add_(1).log_()
        return (logits * x).sub_(logits.clamp_min(0)).sub_(rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, x = ctx.saved_tensors
        by_logits = gradient * (x - logits.sigmoid())
        return by_logits, gradient * logits if ctx.needs_input_grad[1] else None
