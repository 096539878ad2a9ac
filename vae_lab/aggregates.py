"""Aggregates: how S values of f become one number per datum, [S, *B] -> [*B]."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Aggregate = Callable[[Tensor], Tensor]


def mean(values: Tensor) -> Tensor:
    r"""The plain Monte-Carlo estimate, :math:`\frac{1}{S} \sum_s f_s`."""
    return values.mean(0)


def log_mean_exp(values: Tensor) -> Tensor:
    r"""The multi-sample bound of log-weights, :math:`\log \frac{1}{S} \sum_s \exp f_s`.

    Where all of them are minus infinity, so is the bound, which then has no gradient.

    Source: Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, ICLR 2016,
    arXiv:1509.00519
    """
    lost = values.detach().amax(0) == -torch.inf  # there the derivative of logsumexp is NaN
    bound = values.masked_fill(lost, 0.0).logsumexp(0) - math.log(values.shape[0])
    return bound.masked_fill(lost, -torch.inf)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """The sum over the first axis; what has weight 0 has no part in it, minus infinity neither."""
    lost = values == -torch.inf
    total = (weights * values.masked_fill(lost, 0.0)).sum(0)
    return torch.where((lost & (weights > 0)).any(0), total - torch.inf, total)  # NaN stays NaN


def possible(values: Tensor) -> Tensor:
    """The values, and 0 where one is minus infinity; a fault of f, NaN or infinity, stays."""
    return values.masked_fill(values == -torch.inf, 0.0)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b, and 0 where either is minus infinity; a fault of f, NaN or infinity, stays."""
    return (a - b).masked_fill(torch.minimum(a, b) == -torch.inf, 0.0)  # minimum hands on NaN


def substitute(values: Tensor, counterfactual: Tensor, aggregate: Aggregate) -> Tensor:
    r"""The aggregate with each sample in turn replaced, :math:`A(f_1, .., c_s, .., f_S)`.

    Args:
        values: f at the samples, [S, *B].
        counterfactual: what replaces sample s, [S, *B].

    Returns:
        For every s, the aggregate with f_s replaced by c_s, [S, *B].
    """
    diagonal = torch.eye(values.shape[0], dtype=torch.bool, device=values.device)
    diagonal = diagonal.reshape(*diagonal.shape, *[1] * (values.ndim - 1))
    return aggregate(
        torch.where(diagonal, counterfactual, values.unsqueeze(1))
    )  # [S, S, *B] -> [S, *B]


def credit(values: Tensor, counterfactual: Tensor, aggregate: Aggregate) -> Tensor:
    r"""The drop in the aggregate when c_s replaces f_s, for every s, [S, *B].

    It is :math:`A(f_1, .., f_S) - A(f_1, .., c_s, .., f_S)`, and 0 where either of the two is minus
    infinity. The arguments are those of :func:`substitute`.
    """
    if aggregate is mean:  # of which S values are enough, and nothing is lost to rounding
        return difference(values, counterfactual) / values.shape[0]
    return difference(aggregate(values), substitute(values, counterfactual, aggregate))


def mean_of_others(values: Tensor) -> Tensor:
    r"""The leave-one-out mean, :math:`\frac{1}{S - 1} \sum_{j \neq s} f_j`, [S, *B] -> [S, *B]."""
    lost = values == -torch.inf
    kept = values.masked_fill(lost, 0.0)
    mean = (kept.sum(0) - kept) / (values.shape[0] - 1)
    return torch.where(lost.sum(0) > lost, mean - torch.inf, mean)  # where another one is lost


def log_mean_exp_of_others(values: Tensor) -> Tensor:
    r"""The bound of the others, :math:`\log \frac{1}{S-1} \sum_{j \neq s} \exp f_j`, [S, *B]."""
    without = substitute(values, torch.full_like(values, -torch.inf), log_mean_exp)
    return without + math.log(values.shape[0] / (values.shape[0] - 1))
