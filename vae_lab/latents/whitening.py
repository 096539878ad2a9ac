"""What the encoder gives, with a mean of 0 and a covariance of 1: around codes that do not move."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution

from ..distributed import all_sum, is_aside
from ..distributions import full_precision
from ..precision import FullPrecision
from ..schedules import Schedule
from .base import Latent

DECAY = 0.9  # of the moments' averages
RIDGE = 1e-6  # of the mean variance: numbers that depend on each other have no inverse
LEAST = 0.01  # variance that the ridge is a part of: h that does not change has none


class First(Schedule):
    """1 in so many first steps, and then 0.

    Attributes:
        now: the same as a bool, for which no device is waited for.
    """

    def __init__(self, count: int) -> None:
        self.count, self.now = count, count > 0
        super().__init__()

    def at(self, step: int) -> float:
        return float(step < self.count)

    def set_step(self, step: int) -> None:
        if self.now != (step < self.count):
            self.now = not self.now
            super().set_step(step)


class Whitening(FullPrecision):
    r"""h minus its mean, with a covariance of 1: of L vectors of D numbers, each by itself.

    .. math:: h' = R^{-1} (h - \mu), \qquad R R^\top = \Sigma

    Codes that are fixed cannot follow h. In its first steps training moves all of h together, for
    the mean of the data wants it; the next codes are few, and where h is bounded no gradient leads
    back. Here the moments are those of the batch, in all processes together, and their gradient is
    part of that of h': to move or to stretch all of h changes nothing, so that nothing does. The
    averages of the batches' moments take their place out of training; in it they count as D + 1
    rows of the batch, for those that are small. Of the first batch these rows are as spread in all
    directions. Until there was a batch h' is h.

    After so many steps the averages stay as they are, also in training, and h may lie as it likes:
    by then the codes are in use, and the pictures come nearer where h need not fill the space.

    Args:
        vectors: L.
        dim: D.
        steps: of training, in which the moments count.

    Attributes:
        loc: the average of the mean, [L, D].
        covariance: that of the covariance, [L, D, D].
        matrix: the inverse of its R.

    Source: for D = 1 batch normalisation, Ioffe & Szegedy 2015, arXiv:1502.03167; Siarohin,
    Sangineto & Sebe, *Whitening and Coloring Batch Transform for GANs*, ICLR 2019, arXiv:1806.00420
    """

    loc: Tensor
    covariance: Tensor
    matrix: Tensor
    started: Tensor
    learns: bool = False

    def __init__(self, vectors: int, dim: int, steps: int) -> None:
        super().__init__()
        self.whitens = First(steps)
        self.register_buffer("loc", torch.zeros(vectors, dim))
        one = torch.eye(dim).repeat(vectors, 1, 1)
        self.register_buffer("covariance", one)
        self.register_buffer("matrix", one.clone())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, h: Tensor) -> Tensor:
        """h [*, L, D] by the averages, or while they are :func:`learning` by its own moments."""
        with torch.autocast(h.device.type, enabled=False):
            h = full_precision(h)
            if self.learns and self.whitens.now:
                vectors = h.flatten(0, -3)
                return _ByItsMoments.apply(vectors, *self._moments(vectors)).view_as(h)
            loc, matrix = self.loc.clone(), self.matrix.clone()  # the next batch writes into them
            return _times(h - loc, matrix)

    @torch.no_grad()
    def _moments(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of h [N, L, D] in all processes and D + 1 vectors of the past: h minus their mean, in
        columns, the inverse of R, and their number. The averages take them."""
        x, past = _columns(h), h.shape[-1] + 1
        present = all_sum(x.new_full((), x.shape[-1]))
        count = present + past  # by no buffer: a compiled backward pass would see it as it is then
        share, one = past / count, torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
        mean = all_sum(x.sum(-1)) / present
        loc = mean.lerp(torch.where(self.started, self.loc.to(mean), mean), share)
        centred = x - loc.unsqueeze(-1)
        covariance = all_sum(centred.bmm(centred.mT)) / present
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(LEAST)[:, None, None]
        round_one = variance * one  # as much in all directions
        before = torch.where(self.started, self.covariance.to(covariance), round_one)
        covariance = covariance.lerp(before, share).add_(RIDGE * round_one)
        weight = 1 - DECAY * self.started.to(loc)
        self.loc.copy_(self.loc.to(loc).lerp(loc, weight))
        average = self.covariance.to(covariance).lerp(covariance, weight)
        self.covariance.copy_(average)
        root, _ = torch.linalg.cholesky_ex(torch.stack([covariance, average]))
        matrix, average = torch.linalg.solve_triangular(root, one, upper=False)
        self.matrix.copy_(average)
        self.started.fill_(True)
        return centred, matrix, count


def whitening(vectors: int, dim: int, steps: int) -> nn.Module:
    """Of so many first steps of training; of 0 h stays as it is.

    Raises:
        ValueError: it is no number of steps.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"whiten must be a number of steps, 0 for none, got {steps!r}")
    return Whitening(vectors, dim, steps) if steps else nn.Identity()


class Whitened(Latent):
    """A latent that whitens what the encoder gives, and in training learns how."""

    whitening: nn.Module

    def learn(self, parameters: Tensor) -> Distribution:
        with learning(self.whitening):
            return self.distribution(parameters)


@contextmanager
def learning(whitening: nn.Module) -> Iterator[None]:
    """Within this context it learns of what it is given; where nothing whitens, nothing does."""
    if not isinstance(whitening, Whitening):
        yield
        return
    whitening.learns = True
    try:
        yield
    finally:
        whitening.learns = False


class _ByItsMoments(torch.autograd.Function):
    r"""h [N, L, D] -> :math:`y = W (h - \mu)`, by the mean :math:`\mu` and :math:`W = R^{-1}` of n
    vectors, of which these are some.

    From the gradients of y, the columns of G, those of h are the columns of

    .. math:: W^\top \big(G - \bar g - Q (Y - \bar y) / n\big), \qquad
              Q = \mathrm{tril}(G Y^\top) + \mathrm{tril}(G Y^\top, -1)^\top

    with sums over the vectors in all processes, of which :math:`\bar g` and :math:`\bar y` are the
    n-th part. The ridge is taken as a constant.

    Source: that of the root, Murray 2016, *Differentiation of the Cholesky decomposition*,
    arXiv:1602.07527, eq. 10
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, centred: Tensor, matrix: Tensor, count: Tensor) -> Tensor:
        y = matrix.bmm(centred)
        ctx.aside = is_aside()
        ctx.save_for_backward(y, all_sum(y.sum(-1, keepdim=True)) / count, matrix, count)
        return _rows(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        y, mean, matrix, count = ctx.saved_tensors
        with torch.autocast(y.device.type, enabled=False):
            g, back = _columns(gradient), matrix.mT
            products = all_sum(g.bmm(y.mT))  # [L, D, D]
            q = (products.tril() + products.tril(-1).mT) / count
            shift = q.bmm(mean) - all_sum(g.sum(-1, keepdim=True)) / count
            moved = torch.baddbmm(back.bmm(shift), back, g).baddbmm_(back.bmm(q), y, alpha=-1)
        return _rows(torch.zeros_like(moved) if ctx.aside else moved), None, None, None


def _columns(rows: Tensor) -> Tensor:
    """[N, L, D] -> [L, D, N], laid out so that products of few rows are fast."""
    return rows.movedim(0, -1).contiguous()


def _rows(columns: Tensor) -> Tensor:
    """[L, D, N] -> [N, L, D], which lies as it did."""
    return columns.movedim(-1, 0)


def _times(h: Tensor, matrix: Tensor) -> Tensor:
    """[*, L, D] by matrices [L, D, D], one for each vector."""
    if len(matrix) == 1:  # in half of einsum's time
        return F.linear(h, matrix[0])
    return torch.einsum("...ld,led->...le", h, matrix)
