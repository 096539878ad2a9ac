"""Masses of 8-bit values: a logistic, integrated over the bin of each of the 256."""

import torch
import torch.nn.functional as F
from torch import Tensor


def log_mass(offset: Tensor, inverse_scale: Tensor, level: Tensor, half: float) -> Tensor:
    r"""The logarithm of a logistic's mass in the bin around x, in nats.

    .. math:: \log \big[ F((x + b - \mu) / s) - F((x - b - \mu) / s) \big]

    with F the sigmoid. The outermost bins extend to infinity, so that the 256 masses sum to 1.

    Args:
        offset: :math:`x - \mu`, in any unit.
        inverse_scale: 1 / s, in that unit.
        level: which of 0 to 255 x is.
        half: b, half the width of a bin.
    """
    upper, lower = (offset + half) * inverse_scale, (offset - half) * inverse_scale
    # F(u) - F(l) = F(u) F(-l) (1 - exp(l - u)), each factor stable however far out or narrow.
    # An outermost bin keeps one tail: F(u) at 0, F(-l) at 255.
    black, white = level == 0, level == 255
    return (
        F.logsigmoid(upper).masked_fill(white, 0)
        + F.logsigmoid(-lower).masked_fill(black, 0)
        + torch.log(-torch.expm1(-2 * half * inverse_scale)).masked_fill(black | white, 0)
    )


def levels(x: Tensor) -> Tensor:
    """The nearest of 0 to 255, of x in [0, 1]."""
    return (x * 255).round()


def check_levels(name: str, x: Tensor) -> None:
    """Refuses values in [0, 1] that are not k / 255."""
    off_grid = x[(levels(x) - x * 255).abs() > 1e-2]
    if off_grid.numel() > 0:
        raise ValueError(
            f"{name} needs 8-bit values k / 255, the batch has {off_grid[0].item():g}: round to "
            "(x * 255).round() / 255, or use a Gaussian or ContinuousBernoulli likelihood"
        )
