"""Every prior that the library has, with each family of z, flat and on a grid."""

import itertools

import pytest
import torch
import torch.distributions as td
from tiny import randomize

from vae_lab import VAE, likelihoods
from vae_lab.conditions import Labels
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Latent, Poisson
from vae_lab.networks import MLP, Grid
from vae_lab.priors import Autoregressive, Flow, Mixture, Vamp

LIMIT = 4.5  # standard errors
SHAPE = (1, 3, 3)
LATENTS = {
    "gaussian": lambda: Gaussian(2),
    "codes": lambda: Categorical(2, 3),
    "bits": lambda: Bernoulli(2),
    "counts": lambda: Poisson(2),
}
NETWORKS = {"flat": MLP((4,), "tanh"), "grid": Grid((3,), activation="tanh")}
PRIORS = {
    "mixture": lambda: Mixture(3),
    "vamp": lambda: Vamp(4),
    "coupling": lambda: Flow("coupling", 3, (8,)),
    "autoregressive flow": lambda: Flow("autoregressive", 2, (8,)),
    "transformer": lambda: Autoregressive(8, 2, 2, components=3),
}
CASES = [
    pytest.param(latent, network, prior, id=f"{latent} {network} {prior}")
    for latent, network, prior in itertools.product(LATENTS, NETWORKS, PRIORS)
    if latent == "gaussian" or not isinstance(PRIORS[prior](), Flow)
]
cases = pytest.mark.parametrize("latent, network, prior", CASES)


def make(latent, network, prior, double=True, seed=0):
    torch.manual_seed(seed)
    vae = VAE(SHAPE, NETWORKS[network], LATENTS[latent](), likelihoods.Bernoulli(), PRIORS[prior]())
    randomize(vae, 0.4)
    return vae.double().eval() if double else vae.eval()


def parameters_of(prior):
    return [p for p in prior.parameters() if p.requires_grad]


class Positive(Latent):
    """Numbers that a Gaussian cannot have."""

    def __init__(self, latents):
        super().__init__((latents,), 2 * latents, learn_prior=False)

    def distribution(self, parameters):
        return self.independent(td.Gamma(*parameters.exp().chunk(2, -1), validate_args=False))


def conditional(latent, network, prior, classes=3, seed=0, of_z=True):
    torch.manual_seed(seed)
    parts = NETWORKS[network], LATENTS[latent](), likelihoods.Bernoulli(), PRIORS[prior]()
    return VAE(SHAPE, *parts, Labels(classes, prior=of_z)).double().eval()
