"""Trainings by `vae_lab.fit` that take no time, and whether two models are the same."""

from functools import partial

import torch

import vae_lab
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP

torch.manual_seed(0)
X = (torch.rand(60, 6) < 0.3).float()
small = partial(
    vae_lab.fit,
    network=MLP((8,)),
    latent=Gaussian(2),
    likelihood=Bernoulli(),
    epochs=2,
    batch_size=20,
    progress=False,
    device="cpu",
)
QUIET = {"epochs": 2, "progress": False}
QUICK = QUIET | {"network": MLP((8,))}


def weights(vae):
    return torch.cat([tensor.flatten().double() for tensor in vae.state_dict().values()])


def same(a, b):
    return torch.equal(weights(a), weights(b))
