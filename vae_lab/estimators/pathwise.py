"""Gradients along the path of a sample: z = g(phi, noise), so dz/dphi exists."""

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, VonMises

from ..aggregates import Aggregate, log_mean_exp
from ..distributions import base, can_detach, detach, per_dimension
from .base import Estimator, Integrand, positive_samples, surrogate
from .control import leaf, slope


class Reparameterization(Estimator):
    r"""The pathwise derivative of a sample that is a differentiable function of its parameters.

    .. math:: \nabla_\phi \mathbb{E}_{q_\phi}[f(z)] =
              \mathbb{E}_{\epsilon}\big[\nabla_\phi f(g_\phi(\epsilon))\big],
              \quad z = \mu + \sigma \epsilon \text{ for a Gaussian}

    **Forward** a sample of q. **Backward** through the sample, explicitly (Normal, ...) or
    implicitly (Gamma, Beta, Dirichlet, von Mises); see :func:`rsample`. **Bias** none where f is
    continuous; the gradient of a jump in f is missed, and a function of an angle jumps where it is
    not periodic. **Cost** `num_samples` evaluations.

    E[z^2] is mu^2 + sigma^2 = 10, and its derivatives are 2 mu = 6 and 2 sigma = 2:

    >>> mu, sigma = torch.tensor([3.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)

    >>> q = Independent(Normal(mu, sigma), 1)

    >>> value = Reparameterization(100_000)(q, lambda z: z.square().sum(-1))

    >>> value.backward()

    >>> print(f"{value:.0f}, {mu.grad.item():.0f}, {sigma.grad.item():.0f}")
    10, 6, 2

    Source: Kingma & Welling, *Auto-Encoding Variational Bayes*, ICLR 2014, arXiv:1312.6114
    """

    unbiased = True
    families = (Distribution,)
    needs_differentiable = True
    source = "Kingma & Welling 2014"
    needs: ClassVar[str] = "a Distribution that has rsample"

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)

    @classmethod
    def accepts(cls, q: Distribution) -> bool:
        return getattr(base(q), "has_rsample", False) or isinstance(base(q), VonMises)

    @classmethod
    def refusal(cls, q: Distribution) -> str:
        needs = f"{cls.__name__} works with {cls.needs}"
        return super().refusal(q).replace(f"{cls.__name__} works with Distribution", needs)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        return aggregate(f(rsample(q, self.num_samples)))


def rsample(q: Distribution, num_samples: int) -> Tensor:
    r"""Samples of q through which its parameters are differentiated, [S, *B, *E].

    torch's ``rsample``, and for the von Mises distribution, which has none there, the implicit
    derivative of a sample at the angle :math:`\theta = z - \mu`:

    .. math:: \frac{\partial z}{\partial \kappa}
              = -\frac{\partial F(z; \mu, \kappa) / \partial \kappa}{q(z)}
              = -\int_0^\theta \Big(\cos t - \frac{I_1(\kappa)}{I_0(\kappa)}\Big)
              e^{\kappa (\cos t - \cos \theta)} \, dt, \qquad
              \frac{\partial z}{\partial \mu} = 1

    Source: Figurnov, Mohamed & Mnih, *Implicit Reparameterization Gradients*, NeurIPS 2018,
    arXiv:1805.08498; the integral is derived from it
    """
    inner = base(q)
    if type(inner) is Normal:  # torch's own, but for the noise, of which vmap gives each datum some
        shape, like = (num_samples, *inner.batch_shape), inner.loc
        return inner.loc + torch.randn(shape, dtype=like.dtype, device=like.device) * inner.scale
    if not isinstance(inner, VonMises):
        return q.rsample((num_samples,))
    z = q.sample((num_samples,))
    loc, concentration = inner.loc.detach(), inner.concentration.detach()
    angle = torch.remainder(z - loc + math.pi, 2 * math.pi) - math.pi
    slope = _von_mises_slope(angle.double(), concentration.double()).to(z)
    return z + surrogate(inner.loc + slope * inner.concentration)


def _von_mises_slope(angle: Tensor, concentration: Tensor) -> Tensor:
    nodes, weights = (x.to(angle.device) for x in _quadrature())
    t = angle.unsqueeze(-1) * nodes
    kappa = concentration.unsqueeze(-1)
    mean = torch.special.i1e(kappa) / torch.special.i0e(kappa)
    density = (kappa * (t.cos() - angle.cos().unsqueeze(-1))).exp()
    return -angle * ((t.cos() - mean) * density * weights).sum(-1)


@functools.cache
def _quadrature(points: int = 64) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], from the Jacobi matrix (Golub & Welsch 1969)."""
    k = torch.arange(1, points, dtype=torch.float64)
    beside = (k / (4 * k.square() - 1).sqrt()).diag(1)
    nodes, vectors = torch.linalg.eigh(beside + beside.T)
    return (nodes + 1) / 2, vectors[0].square()


class StickingTheLanding(Reparameterization):
    r"""The pathwise derivative without the score of log q, whose mean is zero.

    .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}_{\epsilon}\Big[
              \frac{\partial z}{\partial \phi}
              \nabla_z \log \frac{p(x, z)}{q_{\bar\phi}(z | x)} \Big],
              \quad \bar\phi \text{ constant}

    Where q is the true posterior the ratio is constant, so every sample's gradient is zero and not
    only their mean. It differs from its parent only where f contains log q, as in
    :class:`~vae_lab.objectives.MonteCarloELBO`.

    **Forward** a sample of q. **Backward** through the sample alone. **Bias** none for the mean;
    inside a multi-sample bound there would be, see :class:`DReG`. **Cost** `num_samples`
    evaluations.

    If q equals the posterior p, the exact gradient is zero. The standard deviation of the plain
    estimates is 1, and that of these is 0:

    >>> mean = torch.zeros(10_000, 1, requires_grad=True)
    >>> p = Independent(Normal(torch.zeros(1), 1.0), 1)

    >>> for estimator in Reparameterization(), StickingTheLanding():
    ...     q = Independent(Normal(mean, 1.0), 1)
    ...     f = lambda z: p.log_prob(z) - estimator.density(q).log_prob(z)
    ...     (g,) = torch.autograd.grad(estimator(q, f).sum(), mean)
    ...     print(f"+- {g.std():.1f}")
    +- 1.0
    +- 0.0

    Source: Roeder, Wu & Duvenaud, *Sticking the Landing: Simple, Lower-Variance Gradient Estimators
    for Variational Inference*, NeurIPS 2017, arXiv:1703.09194
    """

    multi_sample = False
    source = "Roeder et al. 2017"
    needs = "a Distribution that has rsample and is made of its parameters alone, or has detach"

    @classmethod
    def accepts(cls, q: Distribution) -> bool:
        return super().accepts(q) and can_detach(q)

    def density(self, q: Distribution) -> Distribution:
        return detach(q)


class DReG(StickingTheLanding):
    r"""The doubly reparameterised gradient of the multi-sample bound.

    .. math:: \nabla_\phi \mathcal{L}_S = \mathbb{E}\Big[\sum_s \tilde w_s^2
              \frac{\partial z_s}{\partial \phi} \nabla_z \log w_s \Big], \quad
              w_s = \frac{p(x, z_s)}{q_{\bar\phi}(z_s | x)}, \quad
              \tilde w_s = \frac{w_s}{\sum_t w_t}

    Inside the logarithm the score of q has no mean zero; reparameterising it a second time leaves
    the squares of the weights. The signal-to-noise ratio grows with S, where IWAE's own falls. f
    has to be log w, with log q in it once: beta = 1 in :class:`~vae_lab.objectives.IWAE`. For the
    mean of f, and for S = 1, it is sticking the landing.

    **Forward** samples of q. **Backward** as above for q; the decoder's gradient is the bound's
    own. **Bias** none. **Cost** `num_samples` evaluations and one more backward pass, down to z.

    Args:
        num_samples: S.

    Its gradient varies less than the one along the path of all of log w:

    >>> mean = torch.zeros(10_000, 4, requires_grad=True)
    >>> p = Independent(Normal(torch.ones(4), 1.0), 1)

    >>> for estimator in Reparameterization(12), DReG(12):
    ...     q = Independent(Normal(mean, 1.0), 1)
    ...     log_w = lambda z: p.log_prob(z) - estimator.density(q).log_prob(z)
    ...     (g,) = torch.autograd.grad(estimator(q, log_w, aggregate=log_mean_exp).sum(), mean)
    ...     print(f"{g.mean():.1f} +- {g.std():.1f}")
    0.4 +- 0.6
    0.4 +- 0.2

    Source: Tucker, Lawson, Gu & Maddison, *Doubly Reparameterized Gradient Estimators for Monte
    Carlo Objectives*, ICLR 2019, arXiv:1810.04152
    """

    multi_sample = True
    compiles = False  # see compiled.py
    source = "Tucker et al. 2019"

    def __init__(self, num_samples: int = 2) -> None:
        super().__init__(num_samples)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        z = rsample(q, self.num_samples)
        if aggregate is not log_mean_exp or not z.requires_grad:
            return aggregate(f(z))
        points = leaf(z)
        log_w = f(points)  # [S, *B]
        lost = (log_w == -torch.inf).all(0)
        weights = log_w.detach().softmax(0).masked_fill(lost, 0.0)
        df_dz = slope(weights.square() * log_w, points, f, create_graph=False)
        return aggregate(log_w) + surrogate(per_dimension(df_dz * z, q).sum((0, -1)))
