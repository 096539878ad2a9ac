"""Units of the data, learned from them, and values that were not observed, which are NaN."""

import torch
from torch import Tensor


def units(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the observed values of x [N, n], [n] each.

    They are NaN where nothing was observed, and the deviation is 0 where all values are equal.
    """
    mean = x.nanmean(0)
    deviation = (x - mean).square().nanmean(0).sqrt()
    # Of many equal values the mean is off by a rounding, and nothing else is that near to it.
    equal = deviation <= 8 * torch.finfo(x.dtype).eps * mean.abs()
    return mean, deviation.masked_fill(equal, 0)


def observed(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with 0 where it is missing, and where it is not missing."""
    seen = ~x.isnan()
    return torch.where(seen, x, 0), seen


def with_mask(inputs: Tensor, seen: Tensor, axis: int) -> Tensor:
    """What an encoder sees of x, and beside it, on this axis, 1 for each value that was observed.

    Args:
        inputs: where a value is missing, 0 already.
    """
    return torch.cat([inputs, seen.to(inputs.dtype)], axis)
