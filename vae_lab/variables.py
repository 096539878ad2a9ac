"""The latent variables of a model as they are shown: which are used, their values to look at, and
how the prior has them.

The latent answers for its own prior. Another prior need not be a product over the variables, and
then none of them has a KL of its own: what the model does with them is measured instead.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .distributions import base
from .evaluation.decomposition import activity
from .latents.base import WIDTH
from .priors import Prior
from .priors.base import drawn
from .seeding import seeded
from .vae import VAE

DRAWS = 1000  # of another prior, for its mean and standard deviation
MANY = 10_000  # of each variable, for a histogram
BINS = 60  # of it


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
    """The mean KL of each variable, given y where the prior depends on it; to another prior than
    the latent's own, where it has none, the variance of its posterior's mean.

    Args:
        posteriors: q(z|x) of the data, in batches.
    """
    if vae.prior is None:
        kl = torch.cat([*map(vae.kl, posteriors)] if vae.own_prior else [*_given(vae, posteriors)])
        return Use(kl.mean(0).cpu(), "KL", "mean KL", " nats")
    note = "this prior gives no variable a KL of its own"
    variance = activity(*posteriors).float().cpu()
    return Use(variance * vae.latent.seen, "variance", "variance of E[z]", note=note)


def _given(vae: VAE, posteriors: Sequence[Distribution]) -> Iterator[Tensor]:
    """The KL to a prior that depends on the y of the data, which the model was given."""
    start = 0
    for q in posteriors:
        (count,) = q.batch_shape
        yield vae.rows(slice(start, start + count)).kl(q)
        start += count


def values(vae: VAE, steps: int = 7) -> Tensor:
    """Values to set each variable to, [steps, L], as :meth:`.Latent.values` but of the model's
    prior: numbers reach three of its standard deviations from its mean."""
    if vae.prior is None or vae.latent.kind != "numbers":
        return vae.latent.values(steps)
    draws = vae.latent.numbers(_of_prior(vae, vae.prior))
    reach = torch.linspace(-WIDTH, WIDTH, steps, device=draws.device).unsqueeze(-1)
    return (draws.mean(0) + reach * draws.std(0)).clamp(*vae.latent.bounds)


def _of_prior(vae: VAE, prior: Prior) -> Tensor:
    """Draws of a prior, of one that depends on y for some y in turn, [DRAWS, *E]."""
    vectors = None
    with seeded(0, vae.device), torch.no_grad():
        if vae.condition is not None and prior.condition_width:
            vectors = vae.condition(vae.condition.examples(DRAWS))
            vectors = vectors[torch.arange(DRAWS) % len(vectors)]
        return drawn(prior.of(vae, vectors), DRAWS)


def value_range(vae: VAE, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest number that is worth a look, of each variable, [L] each.

    Args:
        numbers: of z that have to lie within, [N, L].
    """
    if vae.prior is not None:
        numbers = torch.cat([numbers, values(vae)])
    return vae.latent.range(numbers)


@torch.no_grad()
def frequencies(vae: VAE) -> Tensor | None:
    """How often the prior has each value of each variable, [V, K]; None for numbers.

    On a grid V are the variables of one place, and another prior than the latent's own is pooled
    over the places.
    """
    latent = vae.latent
    expected = latent.usage(latent.prior())  # [L, K]
    if expected is None:
        return None
    first = latent.num_variables // latent.num_places
    if vae.own_prior:
        return expected[:first]
    drawn, known = _drawn(vae), latent.values(expected.shape[-1])[:, :first]
    return torch.stack([(drawn == value).float().mean(0) for value in known], -1)


@torch.no_grad()
def densities(vae: VAE, units: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Numbers of each of these variables, and the prior's density there, [P, R] each, on the CPU.

    Of another prior than the latent's own it is a histogram of draws, on a grid of all places.

    Args:
        units: which variables, R of them; on a grid, of those of one place.
    """
    latent, prior = vae.latent, vae.latent.prior()
    if not vae.own_prior:
        columns = _drawn(vae)[:, units].cpu().T.contiguous()
        found = [torch.histogram(column, BINS, density=True) for column in columns]
        centres = [(edges[1:] + edges[:-1]) / 2 for _, edges in found]
        return torch.stack(centres, 1), torch.stack([height for height, _ in found], 1)
    steps = torch.linspace(-4, 4, 200, device=vae.device)
    across = prior.mean + steps.reshape(-1, *[1] * prior.mean.ndim) * prior.stddev
    across = across.clamp(*latent.bounds)
    density = base(prior).log_prob(across).exp()
    return latent.numbers(across)[:, units].cpu(), latent.numbers(density)[:, units].cpu()


def _drawn(vae: VAE) -> Tensor:
    """Draws of the prior as numbers, of each place of a grid, [N, V]."""
    p = vae.p_z()
    draws = math.ceil(MANY / vae.latent.num_places / p.batch_shape.numel())
    z = p.sample((draws,)).flatten(0, len(p.batch_shape))
    return vae.latent.places_as_data(vae.latent.numbers(z))
