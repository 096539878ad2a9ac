"""Gaussian latents whose posterior is bent by a flow."""

from collections.abc import Sequence
from typing import get_args

from torch import Tensor
from torch.distributions import Distribution

from ..distributions import base
from ..flows import Kind, Pushed
from ..flows import network as flow_network
from ..networks.base import check_choice, check_positive, widths
from ..precision import FullPrecision
from .base import Latent
from .gaussian import Gaussian


class FlowGaussian(FullPrecision, Gaussian):
    r"""D numbers that depend on each other: :math:`z = f(u; c(x))` with a diagonal Gaussian u.

    .. math:: \log q(z|x) = \log \mathcal{N}(u; \mu(x), \sigma^2(x))
              - \log |\det \partial f / \partial u|

    The encoder gives mu, log sigma and a context c of the flow's networks. At the start f is the
    identity, and q that of :class:`Gaussian`. The prior is the standard normal, or any prior over
    numbers; the KL to it is sampled. It goes with the estimators that need no more than draws with
    a gradient, or a density. What `mode` and the mean of q give is f of mu: neither the most
    probable z nor the average of all.

    On a grid each place has a flow of its own context, and all have their networks in common.

    Args:
        latents: D.
        flow: autoregressive (IAF), which draws at once, and needs D passes for the density of
            other z than its own draws, as importance weighting does; or coupling, which is fast
            both ways and bends less.
        transforms: affine transformations in a row.
        hidden: widths of the network in each of them.
        context: width of c.

    Before training its density is that of a diagonal Gaussian:

    >>> import torch
    >>> latent = FlowGaussian(latents=2, context=1)
    >>> q = latent.distribution(torch.tensor([0.0, 2.0, 0.0, 0.0, 0.5]))  # mu, log sigma, c
    >>> print(q.mean.tolist(), f"{q.log_prob(torch.tensor([0.0, 2.0])):.4f}")
    [0.0, 2.0] -1.8379

    Source: Kingma et al., *Improved Variational Inference with Inverse Autoregressive Flow*,
    NeurIPS 2016, arXiv:1606.04934; Rezende & Mohamed, *Variational Inference with Normalizing
    Flows*, ICML 2015, arXiv:1505.05770
    """

    closed_kl = False

    def __init__(
        self,
        latents: int = 20,
        flow: Kind = "autoregressive",
        transforms: int = 4,
        hidden: Sequence[int] = (128,),
        context: int = 32,
    ) -> None:
        super().__init__(latents)
        check_choice("flow", flow, get_args(Kind))
        check_positive("transforms", transforms)
        check_positive("context", context)
        if flow == "coupling" and latents < 2:
            raise ValueError("flow=coupling needs 2 latents or more, got 1: use autoregressive")
        self.flow, self.transforms, self.context = flow, transforms, context
        self.hidden = widths("hidden", hidden)
        self.parameter_size = 2 * latents + context
        self.networks = flow_network(flow, latents, transforms, self.hidden, context)

    def distribution(self, parameters: Tensor) -> Distribution:
        normal, context = parameters.tensor_split([2 * self.latents], -1)
        u = base(super().distribution(normal))
        return self.independent(Pushed(u.loc, u.scale, context, self.networks))

    def prior_distribution(self, parameters: Tensor) -> Distribution:
        return super().distribution(parameters)

    def gap(self, q: Distribution) -> None:  # type: ignore[override]
        return None

    def log_densities(self, q: Distribution, z: Tensor) -> Tensor:
        return Latent.log_densities(self, q, z)
