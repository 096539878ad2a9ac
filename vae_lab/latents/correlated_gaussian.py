"""Gaussian latents that depend on each other given x."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from ..distributions import MultivariateNormal, base, precise
from ..networks.base import check_positive
from .base import Latent
from .gaussian import Gaussian

MOST = 1e10  # that is told along a direction: with more, double precision loses what is told least


class CorrelatedGaussian(Gaussian):
    r"""D numbers of one Gaussian, whose precision is that of the prior and of what x tells.

    .. math:: q(z|x) = \mathcal{N}(P^{-1} \eta, P^{-1}), \qquad
              P = I + U \operatorname{diag}(s) U^\top
              = I + \textstyle\sum_r s_r \, u_r u_r^\top

    The encoder gives :math:`\eta` [D] and :math:`s \ge 0` [R]: how much x tells about z along each
    of R directions :math:`u_r`, which are trained. This is p(z|x) itself of a linear decoder with
    Gaussian noise: every observed value tells something along its own direction, and one that is
    missing tells nothing, s = 0. So it is the posterior for tables with missing values, where z is
    known along some directions and not along others. As there, q is never wider than the prior; s
    is kept below 1e10, which double precision can still invert.

    The prior is the standard normal. The KL is in closed form, and each variable's share is that of
    the chain rule, of :math:`q(z_d | z_{<d}, x)` from the prior.

    Args:
        latents: D.
        directions: R; None: 2 D.

    Two numbers of which x tells the sum, and nothing of their difference:

    >>> import torch
    >>> latent = CorrelatedGaussian(latents=2, directions=1)
    >>> with torch.no_grad():
    ...     _ = latent.directions_of_x.fill_(1.0)
    >>> q = latent.distribution(torch.tensor([0.0, 0.0, 100.0]))  # eta, and s = 100
    >>> print(f"{q.covariance_matrix[0, 0]:.2f}, {q.covariance_matrix[0, 1]:.2f}")
    0.50, -0.50

    Source: the posterior of factor analysis, Rubin & Thayer, *EM Algorithms for ML Factor
    Analysis*, Psychometrika 1982; as a product of experts, Wu & Goodman, *Multimodal Generative
    Models for Scalable Weakly-Supervised Learning*, NeurIPS 2018, arXiv:1802.05335
    """

    def __init__(self, latents: int = 20, directions: int | None = None) -> None:
        super().__init__(latents)
        self.directions = 2 * latents if directions is None else directions
        check_positive("directions", self.directions)
        self.parameter_size = latents + self.directions
        start = torch.randn(latents, self.directions) / latents**0.5
        self.directions_of_x = nn.Parameter(start)  # U

    def distribution(self, parameters: Tensor) -> Distribution:
        eta, told = parameters.tensor_split([self.latents], -1)
        told = F.softplus(told).clamp_max(MOST)
        eta, told, u = (x.to(precise(x)) for x in (eta, told, self.directions_of_x))
        root = _root(u, told)
        mean = (root @ (root.mT @ eta.unsqueeze(-1))).squeeze(-1)
        normal = MultivariateNormal(
            mean.to(parameters), scale_tril=root.to(parameters), validate_args=False
        )
        return self.independent(normal)

    def prior_distribution(self, parameters: Tensor) -> Distribution:
        return super().distribution(parameters)

    def gap(self, q: Distribution) -> None:  # type: ignore[override]
        return None

    def log_densities(self, q: Distribution, z: Tensor) -> Tensor:
        if isinstance(base(q), MultivariateNormal):
            return Latent.log_densities(self, q, z)
        return super().log_densities(q, z)


def _root(u: Tensor, s: Tensor) -> Tensor:
    """The lower triangular L with L L^T = (I + u diag(s) u^T)^-1, from u [D, R] and s [*, R]."""
    one = torch.eye(len(u), dtype=u.dtype, device=u.device)
    precision = one + (u * s.unsqueeze(-2)) @ u.T
    if torch.compiler.is_exporting():
        return _root_by_columns(precision, one)
    # The Cholesky factor of P, its rows and columns in reversed order, is L^-1 transposed.
    reversed_root, _ = torch.linalg.cholesky_ex(precision.flip(-2, -1))
    inverse = reversed_root.flip(-2, -1).mT
    return torch.linalg.solve_triangular(inverse, one.expand_as(inverse), upper=False)


def _root_by_columns(precision: Tensor, one: Tensor) -> Tensor:
    """The same by arithmetic alone: ONNX knows no factorisation."""
    left, size = precision, len(one)
    columns: list[Tensor] = []  # of L^-1 transposed, from the last to the first
    for d in reversed(range(size)):
        column = left[..., d] / left[..., d, d, None].sqrt()
        columns.append(column)
        left = left - column.unsqueeze(-1) * column.unsqueeze(-2)
    inverse, rows = columns[::-1], list[Tensor]()
    for d in range(size):  # row d of L^-1 is column d of its transposed
        row = one[d].expand_as(inverse[d])
        for before, known in enumerate(rows):
            row = row - inverse[d][..., before, None] * known
        rows.append(row / inverse[d][..., d, None])
    return torch.stack(rows, -2)
