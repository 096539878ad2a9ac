"""What the encoder gives, with a mean of 0 and a covariance of 1: around codes that do not move."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import all_sum, differentiable_all_sum
from ..distributions import full_precision
from ..precision import FullPrecision

DECAY = 0.9  # of the moments' averages
RIDGE = 1e-6  # of the mean variance: numbers that depend on each other have no inverse
LEAST = 0.01  # variance that the ridge is a part of: h that does not change has none


class Whitening(FullPrecision):
    r"""h minus its mean, with a covariance of 1: of L vectors of D numbers, each by itself.

    .. math:: h' = R^{-1} (h - \mu), \qquad R R^\top = \Sigma

    Codes that are fixed cannot follow h. In its first steps training moves all of h together, for
    the mean of the data wants it; the next codes are few, and where h is bounded no gradient leads
    back. Here the moments are those of the batch, in all processes together, and their gradient is
    part of that of h': to move or to stretch all of h changes nothing, so that nothing does. The
    averages of the batches' moments take their place out of training; in it they count as D + 1
    rows of the batch, for those that are small. Until there was a batch h' is h.

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

    def __init__(self, vectors: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(vectors, dim))
        one = torch.eye(dim).repeat(vectors, 1, 1)
        self.register_buffer("covariance", one)
        self.register_buffer("matrix", one.clone())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, h: Tensor) -> Tensor:
        """h [*, L, D] by the averages."""
        loc, matrix = self.loc.clone(), self.matrix.clone()  # the next batch writes into them
        with torch.autocast(h.device.type, enabled=False):
            return _times(full_precision(h) - loc, matrix)

    def learn(self, h: Tensor) -> Tensor:
        """Learns from a batch h [*, L, D], and returns that of which :meth:`forward` makes what the
        batch's own moments would."""
        with torch.autocast(h.device.type, enabled=False):
            rows = full_precision(h).flatten(0, -3)  # [N, L, D]
            more = h.shape[-1] + 1  # rows of the past
            count = all_sum(torch.full_like(self.loc[0, 0], len(rows)))
            total = differentiable_all_sum(rows.sum(0))
            past_loc = torch.where(self.started, self.loc, total.detach() / count)
            loc = (total + more * past_loc) / (count + more)
            centred = rows - loc
            squares = differentiable_all_sum(centred.movedim(0, -1) @ centred.movedim(0, -2))
            past = torch.where(self.started, self.covariance, _round(squares.detach() / count))
            covariance = (squares + more * past) / (count + more)
            weight = torch.where(self.started, 1 - DECAY, 1.0).to(loc)
            average = past_loc.lerp(loc.detach(), weight)
            root = self._take(average, past.lerp(covariance.detach(), weight))
            matrix = root @ _inverse(_root(covariance))
            return (_times(centred, matrix) + average).reshape(h.shape)

    @torch.no_grad()
    def _take(self, loc: Tensor, covariance: Tensor) -> Tensor:
        """R of these averages, which are taken."""
        root = _root(covariance)
        self.loc.copy_(loc)
        self.covariance.copy_(covariance)
        self.matrix.copy_(_inverse(root))
        self.started.fill_(True)
        return root


def _round(covariance: Tensor) -> Tensor:
    """As much variance in all directions, [L, D, D]."""
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(LEAST)
    return variance[:, None, None] * _one(covariance)


def _root(covariance: Tensor) -> Tensor:
    """R, lower triangular, [L, D, D]."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    ridge = RIDGE * variance.mean(-1, keepdim=True).clamp_min(LEAST)
    root, _ = torch.linalg.cholesky_ex(covariance + torch.diag_embed(ridge.expand_as(variance)))
    return root


def _inverse(root: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(root, _one(root), upper=False)


def _one(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).expand_as(like)


def _times(h: Tensor, matrix: Tensor) -> Tensor:
    """[*, L, D] by matrices [L, D, D], one for each vector."""
    if len(matrix) == 1:  # half of the time
        return F.linear(h, matrix[0])
    return torch.einsum("...ld,led->...le", h, matrix)
