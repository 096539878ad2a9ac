"""Counts by finite differences: a derivative of f in place of a difference."""

from typing import Literal

from torch import Tensor
from torch.distributions import Distribution, Poisson

from ..distributions import base
from .base import Unbiased, surrogate
from .relaxations import _Relaxation


class Fini(_Relaxation):
    r"""A straight-through estimator for counts that is exact for polynomials of low degree.

    .. math:: \frac{\partial}{\partial \log \lambda} \mathbb{E}[f(z)]
              = \lambda\, \mathbb{E}[f(z + 1) - f(z)]
              = \lambda\, \mathbb{E}\Big[\int_0^1 f'(z + t)\, dt\Big] \approx \mathbb{E}[w(z) f'(z)]

    The integral is replaced by a quadrature rule on whole numbers, :math:`\sum_k c_k f'(z + k)`,
    and each node is moved to z by :math:`\lambda \mathbb{E}[g(z + 1)] = \mathbb{E}[z g(z)]`.
    Degree 2 is the trapezoid, c = (1/2, 1/2); degree 3 is c = (5, 8, -1)/12:

    .. math:: w_2 = \frac{\lambda + z}{2}, \qquad
              w_3 = \frac{1}{12} \Big(5 \lambda + 8 z - \frac{z (z - 1)}{\lambda}\Big)

    **Forward** a sample of q. **Backward** :math:`\partial z / \partial \log \lambda := w(z)`.
    **Bias** none if f is a polynomial of at most that degree in each count, whatever the other
    counts do. The variance of degree 3 grows as the rate falls. **Cost** `num_samples`
    evaluations.

    Args:
        degree: 2 or 3.

    The derivative of E[z^2] by the rate is 1 + 2 * 2 = 5 at the rate 2. The score function uses two
    samples, Fini one:

    >>> rate = torch.full((20_000, 1), 2.0, requires_grad=True)

    >>> for estimator in ScoreFunction(2), Fini():
    ...     value = estimator(Independent(Poisson(rate), 1), lambda z: z.square().sum(-1))
    ...     (g,) = torch.autograd.grad(value.sum(), rate)
    ...     print(f"{g.mean():.0f} +- {g.std():.0f}")
    5 +- 10
    5 +- 5

    Source: He & Wu, 2026; the weights are derived above
    """

    unbiased: Unbiased = "quadratic f"
    families = (Poisson,)
    source = "He & Wu 2026"

    def __init__(self, degree: Literal[2, 3] = 2, num_samples: int = 1) -> None:
        if degree not in (2, 3):
            raise ValueError(f"degree must be 2 or 3, got {degree}")
        super().__init__(num_samples)
        self.degree = degree
        if degree == 3:
            self.unbiased = "cubic f"

    def sample(self, q: Distribution) -> Tensor:
        z = q.sample((self.num_samples,))
        rate = base(q).rate
        return z + surrogate(self.weight(z, rate.detach()) * rate.log())

    def weight(self, z: Tensor, rate: Tensor) -> Tensor:
        """w(z), of the shape of z."""
        if self.degree == 2:
            return (rate + z) / 2
        return (5 * rate + 8 * z - z * (z - 1) / rate) / 12
