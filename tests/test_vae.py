"""The generative model, and its releases."""

import json

import pytest
import torch
from oracles import z_scores
from tiny import LinearGaussian, binary_images, discrete_vae, exact_elbo, log_evidence, randomize

from vae_lab import VAE, likelihoods
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.networks import MLP, Conv, Linear, ResNet

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


PARTS = [
    pytest.param({"latent": Bernoulli(3, True)}, id="Bernoulli"),
    pytest.param({"latent": Categorical(3, 4)}, id="Categorical"),
    pytest.param({"latent": Gaussian(2, True)}, id="Gaussian"),
    pytest.param({"latent": Poisson(2)}, id="Poisson"),
    pytest.param({"network": Linear()}, id="Linear"),
    pytest.param({"network": Conv()}, id="Conv"),
    pytest.param({"network": ResNet()}, id="ResNet"),
    pytest.param({"network": MLP([5, 4], activation="tanh")}, id="MLP"),
    pytest.param({"likelihood": likelihoods.ContinuousBernoulli()}, id="ContinuousBernoulli"),
    pytest.param({"likelihood": likelihoods.Gaussian(0.3, learned=True)}, id="Learned"),
    pytest.param({"likelihood": likelihoods.Gaussian(0.3)}, id="Fixed"),
    pytest.param({"likelihood": likelihoods.DiscretizedLogisticMixture(2)}, id="Mixture"),
]


@pytest.mark.parametrize("parts", PARTS)
def test_a_release_is_the_model(parts, tmp_path):
    vae = small_vae(**parts, shape=(1, 8, 8)).eval()
    vae.save_pretrained(tmp_path / "release", dataset="digits")
    loaded = VAE.from_pretrained(tmp_path)  # the run's folder
    x = torch.rand(2, 1, 8, 8).round()
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    for model in (loaded, vae):
        torch.manual_seed(1)
        model.bound = model.log_likelihood(x, 3)
    assert torch.equal(loaded.bound, vae.bound)
    assert not loaded.training and loaded.network == vae.network
    config = json.loads((tmp_path / "release" / "config.json").read_text())
    assert config["dataset"] == "digits"


def test_a_release_can_be_released_again(tmp_path):
    first = small_vae().save_pretrained(tmp_path / "first")
    second = VAE.from_pretrained(first).save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def rewrite(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 99}, "has format 99, this vae_lab reads 1"),
        ({"sha256": "0"}, "does not match the sha256"),
        ({"network": {"class": "os.system"}}, "unknown network 'os.system' .* known: MLP, Conv"),
        ({"latent": {"class": "Gaussian", "width": 3}}, "the latent .* unexpected .* 'width'"),
        ({"latent": {"class": "Gaussian", "latents": 0}}, "latents must be at least 1, got 0"),
        ({"likelihood": None, "shape": None}, "config.json lacks likelihood, shape"),
    ],
)
def test_what_is_not_a_release_of_this_library_is_refused(changes, message, tmp_path):
    rewrite(small_vae().save_pretrained(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        VAE.from_pretrained(tmp_path)


def test_changed_weights_are_refused(tmp_path):
    path = small_vae().save_pretrained(tmp_path) / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    with pytest.raises(ValueError, match="does not match the sha256"):
        VAE.from_pretrained(tmp_path)


def test_no_release_is_said_plainly(tmp_path):
    with pytest.raises(FileNotFoundError, match="no release at .* expected config.json and model"):
        VAE.from_pretrained(tmp_path)
    small_vae().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no release"):
        VAE.from_pretrained(tmp_path)


def test_facts_neither_replace_the_description_nor_spoil_a_release(tmp_path):
    vae = small_vae()
    vae.save_pretrained(tmp_path)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    randomize(vae)
    with pytest.raises(ValueError, match="facts must not be named .*, got shape"):
        vae.save_pretrained(tmp_path, shape=(3, 3, 3))
    with pytest.raises(TypeError, match="not JSON serializable"):
        vae.save_pretrained(tmp_path, vae=vae)
    assert before == [path.read_bytes() for path in sorted(tmp_path.iterdir())]
