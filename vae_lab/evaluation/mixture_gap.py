"""How much a prior that is fitted afterwards would gain at least: by a small one, on other data."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..latents import Latent
from ..priors import Mixture
from ..priors.base import at_one_place, over_places
from ..vae import VAE

COMPONENTS, STEPS, RATE = 20, 200, 0.07
ROWS = 500  # places of z in a step
NUMBERS = 1 << 20  # that a step compares: rows times components times the width of a place
DRAWS = 2  # of z for each datum
LEAST = 20  # data of which a half can be fitted


class MixtureGap(NamedTuple):
    """The result of :func:`mixture_gap`, in nats of a datum.

    Attributes:
        value: a lower bound on KL(q(z) || p(z)), up to its error.
        error: standard error of the mean over the data that nothing was fitted to.
    """

    value: float
    error: float


def mixture_gap(vae: VAE, q: Distribution) -> MixtureGap | None:
    r"""What a mixture m that is fitted to the aggregate posterior says more of z than the prior.

    .. math:: \mathrm{KL}(q(z) \,\|\, p(z)) \ge \mathbb{E}_{q(z)}[\log m(z) - \log p(z)]

    The mixture, :class:`~vae_lab.priors.Mixture` of 20 components of the prior's family, is fitted
    to draws of every second posterior, and the expectation is that of the others. On a grid it is
    one of the z of a place, drawn anew at each: how places belong together, it does not know.
    With this mixture as its prior, the ELBO of the model would be higher by just as much.

    Args:
        vae: given the y of the data, if it is conditional.
        q: the posteriors of N data, batch shape [N].

    Returns:
        None of fewer than 20 data.
    """
    data = torch.arange(q.batch_shape[0])
    if len(data) < LEAST:
        return None
    z, gains = q.sample((DRAWS,)), []  # [S, N, *E]
    mixture = over_places(vae.latent, _fitted(vae.latent, z[:, ::2].flatten(0, 1)))
    for some in data[1::2].split(max(NUMBERS // (vae.latent.size * COMPONENTS), 1)):
        others = z[:, some]
        gained = mixture.log_prob(others) - vae.rows(some).p_z().log_prob(others)
        gains.append(gained.mean(0).double().cpu())
    gain = torch.cat(gains)
    return MixtureGap(gain.mean().item(), gain.std().item() / math.sqrt(len(gain)))


def _fitted(latent: Latent, z: Tensor) -> Distribution:
    """The mixture that maximises the mean of log m(z) of one place, z [N, *E]."""
    place = at_one_place(latent)
    z = z.reshape(-1, *place.event_shape)
    rows = max(min(ROWS, NUMBERS // (COMPONENTS * place.size)), 1)
    mixture = Mixture(COMPONENTS)
    mixture.bind(place)
    mixture.to(z.device, z.dtype)
    mixture.meet(z)
    optimizer = torch.optim.Adam(mixture.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad()
            some = z[torch.randint(len(z), (rows,))]
            (-mixture(None).log_prob(some).mean()).backward()
            optimizer.step()
            schedule.step()
    return mixture.requires_grad_(False)(None)
