"""The gradient of a nearest code, copied to what it is nearest to."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..aggregates import Aggregate
from ..distributions import base
from ..quantized import Quantized
from .base import Estimator, Integrand, descent

STRETCH = 1000.0  # the most that a rotated gradient is scaled by: an h of 0 has no direction


class VectorQuantization(Estimator):
    r"""The nearest code, whose gradient is copied to h, what the encoder gives.

    .. math:: z = \arg\min_k \| h - e_k \|^2, \qquad
              \frac{\partial f}{\partial h} := \frac{\partial f}{\partial e_z}, \qquad
              \text{loss} = \| \mathrm{sg}(h) - e_z \|^2 + \beta \| h - \mathrm{sg}(e_z) \|^2

    The loss is a sum over all codes of a datum, with gradients only: the value is f's. Its first
    term trains the codes, which f does not; codes that follow an average, or are fixed, have none.
    The second one keeps h near them. It is not what straight-through becomes at a temperature of 0:
    there the probabilities no longer have a derivative, and the encoder none either.

    An ELBO with a KL in closed form is a function of the code, and its gradient is copied as it is.
    What asks for z itself, as a learned prior does, has a gradient for the place of each category:
    what is copied is then its part in the space that the codes' differences span, all of it where
    they are more than they have dimensions.

    **Forward** the nearest code. **Backward** the copy, or, if `rotation`, the gradient turned and
    scaled as h would have to be to become the code, so that angles between the two remain (Fifty et
    al.). **Bias** always: f at the code says nothing of others. **Cost** one evaluation.

    Args:
        commitment: beta, not negative.
        rotation: the rotation trick.

    Of codes -1, 0 and 1 the last one is nearest to 0.7, where (e - 3)^2 has the derivative -4:

    >>> from vae_lab.latents import FSQ
    >>> latent = FSQ(levels=(3,))  # which bounds h by tanh
    >>> logits = torch.tensor([[0.7]]).atanh().requires_grad_()

    >>> f = lambda z: (latent.embed(z) - 3).square().sum(-1)
    >>> value = VectorQuantization(commitment=0.0)(latent.distribution(logits), f)
    >>> (g,) = torch.autograd.grad(value, logits)
    >>> print(value.item(), (g / (1 - 0.7**2)).item())
    4.0 -4.0

    Source: van den Oord, Vinyals & Kavukcuoglu, *Neural Discrete Representation Learning*, NeurIPS
    2017, arXiv:1711.00937, eq. 3; Fifty et al., *Restructuring Vector Quantization with the
    Rotation Trick*, ICLR 2025, arXiv:2410.06424
    """

    unbiased = False
    families = (Quantized,)
    needs_differentiable = True
    evaluations = "1"
    source = "van den Oord et al. 2017; Fifty et al. 2025"

    def __init__(self, commitment: float = 1.0, rotation: bool = False) -> None:
        super().__init__()
        if not commitment >= 0:
            raise ValueError(f"commitment must not be negative, got {commitment:g}")
        self.commitment, self.rotation = commitment, rotation

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: Tensor | None
    ) -> Tensor:
        inner = base(q)
        h, code = inner.h, inner.code
        moved = rotated(h, code) if self.rotation else h
        value = aggregate(f(inner.carried(moved - code).unsqueeze(0)))
        if not (self.commitment or code.requires_grad):
            return value
        distance = (h.detach() - code).square() + self.commitment * (h - code.detach()).square()
        return value + descent(distance.flatten(len(q.batch_shape)).sum(-1).to(value.dtype))


def rotated(h: Tensor, code: Tensor) -> Tensor:
    r"""h turned and scaled to be the code, by a matrix that is a constant, [*, D].

    .. math:: \frac{\|e\|}{\|h\|} \big(h - 2 r r^\top h + 2 \hat e \hat h^\top h\big), \qquad
              r = \frac{\hat h + \hat e}{\| \hat h + \hat e \|}

    Source: Fifty et al. 2025, arXiv:2410.06424, section 4.2
    """
    fixed, goal = h.detach(), code.detach()
    h_unit, e_unit = unit(fixed), unit(goal)
    r = unit(h_unit + e_unit)
    along_r = 2 * (h * r).sum(-1, keepdim=True) * r
    along_h = 2 * (h * h_unit).sum(-1, keepdim=True) * e_unit
    goal_length, length = (x.norm(dim=-1, keepdim=True) for x in (goal, fixed))
    scale = goal_length / torch.maximum(length, goal_length / STRETCH).clamp_min(
        torch.finfo(h.dtype).tiny
    )
    return scale * (h - along_r + along_h)


def unit(x: Tensor) -> Tensor:
    """x with a length of 1, [*, D]; 0 stays 0."""
    return torch.nn.functional.normalize(x, dim=-1)
