"""Gradients along the path of a sample: z = g(phi, noise), so dz/dphi exists."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..aggregates import Aggregate, log_mean_exp
from .base import Estimator, Integrand, base, detach, per_dimension, positive_samples, surrogate


class Reparameterization(Estimator):
    r"""The pathwise derivative of a sample that is a differentiable function of its parameters.

    .. math:: \nabla_\phi \mathbb{E}_{q_\phi}[f(z)] =
              \mathbb{E}_{\epsilon}\big[\nabla_\phi f(g_\phi(\epsilon))\big],
              \quad z = \mu + \sigma \epsilon \text{ for a Gaussian}

    **Forward** a sample of q. **Backward** through the sample, explicitly (Normal, ...) or
    implicitly (Gamma, Beta, Dirichlet), as torch's ``rsample`` does it; torch's von Mises has none
    and is refused. **Bias** none where f is continuous; the gradient of a jump in f is missed.
    **Cost** `num_samples` evaluations.

    Source: Kingma & Welling, *Auto-Encoding Variational Bayes*, ICLR 2014, arXiv:1312.6114
    """

    unbiased = True
    families = (Distribution,)
    needs_differentiable = True
    source = "Kingma & Welling 2014"

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = positive_samples("num_samples", num_samples)

    @classmethod
    def accepts(cls, q: Distribution) -> bool:
        return getattr(base(q), "has_rsample", False)

    @classmethod
    def refusal(cls, q: Distribution) -> str:
        needs = f"{cls.__name__} works with a Distribution that has rsample"
        return super().refusal(q).replace(f"{cls.__name__} works with Distribution", needs)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        return aggregate(f(q.rsample((self.num_samples,))))


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

    Source: Roeder, Wu & Duvenaud, *Sticking the Landing: Simple, Lower-Variance Gradient Estimators
    for Variational Inference*, NeurIPS 2017, arXiv:1703.09194
    """

    multi_sample = False
    source = "Roeder et al. 2017"

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

    Source: Tucker, Lawson, Gu & Maddison, *Doubly Reparameterized Gradient Estimators for Monte
    Carlo Objectives*, ICLR 2019, arXiv:1810.04152
    """

    multi_sample = True
    source = "Tucker et al. 2019"

    def __init__(self, num_samples: int = 2) -> None:
        super().__init__(num_samples)

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        z = q.rsample((self.num_samples,))
        if aggregate is not log_mean_exp or not z.requires_grad:
            return aggregate(f(z))
        points = z.detach().requires_grad_()
        log_w = f(points)  # [S, *B]
        weights = log_w.detach().softmax(0)
        (slope,) = torch.autograd.grad(log_w, points, weights.square(), retain_graph=True)
        return aggregate(log_w) + surrogate(per_dimension(slope * z, q).sum((0, -1)))
