"""The latent variables of a model as they are shown: which are used, and their values to look at.

The latent answers for its own prior. Another prior need not be a product over the variables, and
then none of them has a KL of its own: what the model does with them is measured instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .evaluation.decomposition import activity
from .latents.base import WIDTH
from .vae import VAE

DRAWS = 1000  # of another prior, for its mean and standard deviation


class Use(NamedTuple):
    """How much each latent variable says of the data.

    Attributes:
        each: of each variable, [L], on the CPU.
        name: of the measure, in a word.
        measure: what it is.
        unit: with a space before it; empty for a pure number.
        note: why it is not the KL, if it is not.
    """

    each: Tensor
    name: str
    measure: str
    unit: str = ""
    note: str = ""


@torch.no_grad()
def use(vae: VAE, posteriors: Sequence[Distribution]) -> Use:
    """The mean KL of each variable; to another prior than the latent's own, where it has none, the
    variance of its posterior's mean.

    Args:
        posteriors: q(z|x) of the data, in batches.
    """
    if vae.prior is None:
        kl = torch.cat([vae.kl(q) for q in posteriors]).mean(0).cpu()
        return Use(kl, "KL", "mean KL", " nats")
    note = "this prior gives no variable a KL of its own"
    variance = activity(*posteriors).float().cpu()
    return Use(variance, "variance", "variance of E[z]", note=note)


def values(vae: VAE, steps: int = 7) -> Tensor:
    """Values to set each variable to, [steps, L], as :meth:`.Latent.values` but of the model's
    prior: numbers reach three of its standard deviations from its mean."""
    if vae.prior is None or vae.latent.kind != "numbers":
        return vae.latent.values(steps)
    draws = vae.latent.numbers(vae.prior.sample(DRAWS))
    reach = torch.linspace(-WIDTH, WIDTH, steps, device=draws.device).unsqueeze(-1)
    return (draws.mean(0) + reach * draws.std(0)).clamp(*vae.latent.bounds)


def value_range(vae: VAE, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest number that is worth a look, of each variable, [L] each.

    Args:
        numbers: of z that have to lie within, [N, L].
    """
    if vae.prior is not None:
        numbers = torch.cat([numbers, values(vae)])
    return vae.latent.range(numbers)
