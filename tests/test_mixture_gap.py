"""What a mixture that is fitted to the aggregate posterior gains on the prior, in nats."""

import pytest
import torch
from tiny import GRID_SHAPE, SHAPE, SMALL_GRID, binary_images, randomize
from torch.distributions import Categorical as Index
from torch.distributions import MixtureSameFamily

from vae_lab import VAE, likelihoods
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.mixture_gap import mixture_gap
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.networks import MLP

# The parameters of two clusters, which do not overlap much.
CLUSTERS = {
    "gaussian": (lambda: Gaussian(1), [[4.0, 0.0], [-4.0, 0.0]]),
    "codes": (lambda: Categorical(2, 2), [[4.0, -4, 4, -4], [-4.0, 4, -4, 4]]),
    "bits": (lambda: Bernoulli(2), [[5.0, 5.0], [-5.0, -5.0]]),
    "counts": (lambda: Poisson(1), [[3.0], [0.0]]),
}


def model(latent, grid=False):
    network = SMALL_GRID if grid else MLP((4,))
    return VAE(GRID_SHAPE if grid else SHAPE, network, latent, likelihoods.Bernoulli())


@pytest.mark.parametrize("family", CLUSTERS)
@pytest.mark.parametrize("grid", [False, True], ids=["flat", "grid"])
def test_it_is_the_divergence_of_an_aggregate_that_is_a_mixture(family, grid):
    """Of two clusters, one twice as often; on a grid of every place by itself."""
    make, clusters = CLUSTERS[family]
    clusters, flat = torch.tensor(clusters), make()
    aggregate = MixtureSameFamily(Index(torch.tensor([2.0, 1.0])), flat.distribution(clusters))
    z = aggregate.sample((20_000,))
    expected = (aggregate.log_prob(z) - flat.prior().log_prob(z)).mean().item()
    vae, images = model(make(), grid), 600
    which = torch.arange(images * vae.latent.num_places) % 3 % 2
    q = vae.latent.distribution(clusters[which].reshape(images, *vae.latent.grid, -1))
    found = mixture_gap(vae, q)
    expected *= vae.latent.num_places
    assert expected > 0.4 and 0 < found.error < 0.1 * expected
    assert expected - 5 * found.error - 0.05 * expected < found.value < expected + 5 * found.error


@pytest.mark.parametrize("family", CLUSTERS)
def test_posteriors_that_are_the_prior_have_none(family):
    make, clusters = CLUSTERS[family]
    vae = model(make())
    q = vae.latent.distribution(torch.zeros(600, len(clusters[0])))
    found = mixture_gap(vae, q)
    assert -0.2 < found.value < 3 * found.error
    assert mixture_gap(vae, vae.latent.distribution(torch.zeros(19, len(clusters[0])))) is None


def test_the_doctor_says_what_a_second_stage_would_gain():
    vae = randomize(model(Gaussian(2)), 0.3)
    with torch.no_grad():
        vae.head.bias[:2] = torch.tensor([4.0, 4.0])
    found = evaluate(vae, [binary_images(100).float()], parts=["split"])
    gap = found.metrics["mixture_gap"]
    assert 10 < gap.value < found.metrics["kl"].value + 5 * gap.standard_error
    [said] = [d for d in found.diagnosis if d.name == "second stage"]
    assert said.level == "warning" and f"{gap.value:.3g} +- " in said.because
    assert said.advice == "type task=prior checkpoint=runs/NAME prior=autoregressive"
