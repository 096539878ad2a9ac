"""A q(z|x) with all of its probability on one z: the code nearest to what the encoder gives."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical, constraints
from torch.distributions.kl import register_kl

from .distributions import one_hot


class Quantized(Distribution):
    r"""The distribution of one point, :math:`q(z) = 1` for the code nearest to h.

    Its probabilities have no derivative, so that none of the estimators of discrete variables can
    train it: :class:`~vae_lab.estimators.VectorQuantization` does, by what stands here of h.

    Args:
        point: z, [*B, *E].
        h: what the encoder gives, [*B, D]; the last axis is a vector.
        code: the code nearest to h, which the decoder sees, [*B, D].
        carried: a move of the code in its space, [*B, D] -> z, whose gradient is taken back to the
            move, as if z had moved by it, [*B, *E].
        event_dims: how many of the point's last axes are one event.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        point: Tensor,
        h: Tensor,
        code: Tensor,
        carried: Callable[[Tensor], Tensor],
        event_dims: int,
    ) -> None:
        batch = point.ndim - event_dims
        super().__init__(point.shape[:batch], point.shape[batch:], validate_args=False)
        self._point, self.h, self.code, self.carried = point, h, code, carried

    @property
    def point(self) -> Tensor:
        return self._point

    @property
    def index(self) -> Tensor:
        """The point as whole numbers, [*B]; of bits themselves."""
        return self.point.long()

    @property
    def logits(self) -> Tensor:
        """log q, 0 of the code and :func:`lowest` of the others; of bits one each."""
        bits = not self.event_shape
        return (1 - (1 + bits) * self.point) * lowest(self.point)

    @property
    def probs(self) -> Tensor:
        return self.point

    @property
    def mean(self) -> Tensor:
        return self.point

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.point)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.point.expand(*sample_shape, *self.point.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        same = value.detach() == self.point
        if self.event_shape:
            same = same.flatten(same.ndim - len(self.event_shape)).all(-1)
        zeros = torch.zeros(same.shape, dtype=value.dtype, device=value.device)
        return zeros.masked_fill(~same, lowest(zeros))

    def entropy(self) -> Tensor:
        return self.point.new_zeros(self.batch_shape)

    def detach(self) -> "Quantized":
        fixed = copy(self)
        fixed.h, fixed.code = self.h.detach(), self.code.detach()
        return fixed


class QuantizedCategory(Quantized):
    """The distribution of one of K categories, whose one-hot z is made only where it is looked at.

    Args:
        index: the category, [*B].
        like: of the type of z, [*, K].
        h, code, carried: see :class:`Quantized`.
    """

    def __init__(
        self,
        index: Tensor,
        like: Tensor,
        h: Tensor,
        code: Tensor,
        carried: Callable[[Tensor], Tensor],
    ) -> None:
        Distribution.__init__(self, index.shape, like.shape[-1:], validate_args=False)
        self._index, self._like, self.h, self.code, self.carried = index, like, h, code, carried

    @property
    def point(self) -> Tensor:
        return one_hot(self._index, self._like)

    @property
    def index(self) -> Tensor:
        return self._index


def lowest(like: Tensor) -> float:
    """The logarithm of a probability of 0, so finite that 0 times it is 0."""
    return torch.finfo(like.dtype).min


@register_kl(Quantized, Distribution)
def _point_kl(q: Quantized, p: Distribution) -> Tensor:
    return -p.log_prob(q.point)


@register_kl(QuantizedCategory, OneHotCategorical)
def _category_kl(q: QuantizedCategory, p: OneHotCategorical) -> Tensor:
    logits = p.logits.expand(*q.batch_shape, -1).gather(-1, q.index.unsqueeze(-1)).squeeze(-1)
    return -logits.clamp_min(lowest(logits))
