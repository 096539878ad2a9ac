"""The generative model, and its releases."""

import pytest
import torch
from oracles import z_scores
from tiny import LinearGaussian, binary_images, discrete_vae, exact_elbo, log_evidence, randomize

from vae_lab import VAE, likelihoods
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.networks import MLP, Linear

MAKE = [
    pytest.param(lambda: Bernoulli(3), id="bits"),
    pytest.param(lambda: Categorical(2, 3, learn_prior=True), id="codes"),
    pytest.param(lambda: Gaussian(2, learn_prior=True), id="gaussian"),
    pytest.param(lambda: Poisson(2), id="counts"),
]
LATENTS = MAKE[:2]


def small_vae(latent=None, network=None, likelihood=None, shape=(1, 4, 4)):
    parts = network or MLP((8,)), latent or Gaussian(3), likelihood or likelihoods.Bernoulli()
    return randomize(VAE(shape, *parts), 0.1)


@pytest.mark.parametrize("make", MAKE)
def test_shapes(make):
    vae = discrete_vae(make())
    x = binary_images(3)
    q = vae.encode(x)
    z = q.sample((5,))
    assert q.batch_shape == (3,)
    assert vae.decode(z).shape == (5, 3, 1, 2, 2) and vae.decode(z[0, 0]).shape == (1, 2, 2)
    assert vae.log_px_z(x, z).shape == (5, 3)
    assert vae.sample(4).shape == (4, 1, 2, 2) and vae.reconstruct(x).shape == x.shape
    assert vae.interpolate(x, x, 6).shape == (6, 3, 1, 2, 2)
    assert vae.log_likelihood(x, 7, chunk=3).shape == (3,)


@pytest.mark.parametrize("make", MAKE)
def test_no_data_is_no_mistake(make):
    """What a short last batch leaves a process to validate."""
    vae = discrete_vae(make())
    bound = vae.elbo(binary_images(0))
    assert bound.elbo.shape == (0,) and bound.kl.shape == (0, vae.latent.event_shape[0])


@pytest.mark.parametrize("make", LATENTS)
def test_the_elbo_is_the_elbo(make):
    vae, x = discrete_vae(make()), binary_images()
    with torch.no_grad():
        bound = vae.elbo(x.repeat(4_000, 1, 1, 1), num_samples=2)
    values = bound.elbo.unflatten(0, (-1, len(x)))
    assert z_scores(values, exact_elbo(vae, x)).abs().max() < 4
    torch.testing.assert_close(bound.elbo, bound.reconstruction - bound.kl.sum(-1))


@pytest.mark.parametrize("make", LATENTS)
@pytest.mark.parametrize("chunk", [1000, 300])
def test_log_likelihood_of_many_samples_is_the_evidence(make, chunk):
    vae, x = discrete_vae(make()), binary_images()
    values = vae.log_likelihood(x.repeat(20, 1, 1, 1), num_samples=1000, chunk=chunk)
    values = values.unflatten(0, (20, len(x)))
    exact = log_evidence(vae, x)
    # The bound is log p(x) but for var / 2 S, which for a thousand samples is below the noise.
    assert z_scores(values, exact).abs().max() < 4
    assert (exact - exact_elbo(vae, x) > 10 * values.std(0)).any()


@pytest.mark.parametrize("learn_prior", [False, True])
def test_log_likelihood_of_a_linear_gaussian_model(learn_prior):
    model = LinearGaussian(Gaussian(2, learn_prior))
    x = model.x.repeat(20, 1, 1, 1)
    values = model.vae.log_likelihood(x, num_samples=4000, chunk=1500).unflatten(0, (20, -1))
    assert z_scores(values, model.log_evidence()).abs().max() < 4
    assert (values.mean(0) - model.elbo()).min() > 0.01


@pytest.mark.parametrize("samples, chunk", [(1, 100), (5, 2), (6, 3), (4, 100)])
def test_every_sample_counts_once_however_they_are_chunked(samples, chunk):
    """A q with one state has no noise: the bound is that state's log-weight."""
    vae, x = discrete_vae(Bernoulli(3)), binary_images()
    with torch.no_grad():
        vae.head.weight.zero_()
        vae.head.bias.fill_(100.0)
    state = torch.ones(3, 3, dtype=torch.float64)
    expected = vae.log_px_z(x, state) + vae.latent.prior().log_prob(state)
    torch.testing.assert_close(vae.log_likelihood(x, samples, chunk), expected)


def test_samples_are_draws_of_the_prior():
    vae = discrete_vae(Categorical(1, 3, learn_prior=True))
    images = vae.sample(20_000)
    z = torch.eye(3, dtype=torch.float64).unsqueeze(1)
    weights = vae.latent.prior().log_prob(z).exp().reshape(3, 1, 1, 1)
    mean = (weights * vae.decode(z).sigmoid()).sum(0)
    assert z_scores(images, mean).abs().max() < 4


@pytest.mark.parametrize("make", MAKE)
def test_reconstruction_and_interpolation_are_deterministic_and_agree(make):
    vae = discrete_vae(make())
    x0, x1 = binary_images(4), binary_images(4)
    path = vae.interpolate(x0, x1, 5)
    torch.testing.assert_close(path[0], vae.reconstruct(x0))
    torch.testing.assert_close(path[-1], vae.reconstruct(x1))
    assert torch.equal(path, vae.interpolate(x0, x1, 5))


@pytest.mark.parametrize("name", ["Bernoulli", "ContinuousBernoulli", "Gaussian"])
def test_the_first_image_is_the_mean_of_the_data(name):
    vae = VAE((1, 4, 4), Linear(), Gaussian(2), getattr(likelihoods, name)())
    mean = torch.rand(1, 4, 4) * 0.9 + 0.05
    vae.initialize_bias(mean)
    image = vae.likelihood.mean(vae.decode(torch.zeros(1, 2)))[0]
    torch.testing.assert_close(image, mean, atol=0.02, rtol=0)
    assert vae.output_bias.requires_grad


def test_images_out_of_range_are_refused():
    vae = small_vae()
    for method in (vae.reconstruct, vae.log_likelihood):
        with pytest.raises(ValueError, match="divide by 255"):
            method(torch.full((1, 1, 4, 4), 255.0))


def test_half_precision_networks_give_full_precision_distributions():
    vae = small_vae().bfloat16()
    q = vae.encode(torch.rand(2, 1, 4, 4).bfloat16())
    assert q.base_dist.loc.dtype == torch.float32
    assert vae.decode(q.sample().bfloat16()).dtype == torch.float32
