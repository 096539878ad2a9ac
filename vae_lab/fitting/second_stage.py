"""A prior for a model that is trained already, from Python."""

from typing import Any

from ..priors import Prior
from ..priors.base import check_learns
from ..vae import VAE
from .door import fit
from .parts import part


def fit_prior(vae: VAE, x: Any, prior: Prior | str = "autoregressive", **settings: Any) -> VAE:
    r"""Trains another prior on a model's posteriors; all else of the model stays as it is.

    .. code-block:: python

        second = vae_lab.fit_prior(vae, x, "flow")

    The ELBO of a datum changes by :math:`\mathbb{E}_{q(z|x)}[\log p'(z) - \log p(z)]`.

    Args:
        vae: a trained model, which does not change.
        x: data, as for :func:`vae_lab.fit`.
        prior: an object, of which a copy is trained, or a name; see :mod:`vae_lab.priors`.
        settings: as for :func:`vae_lab.fit`, such as `epochs`, `lr`, `file` and `progress`.

    Returns:
        The same model with that prior, in evaluation mode.
    """
    second = vae.with_prior(part("prior", prior))
    check_learns(second.prior)
    return fit(x, model=second, **settings)
