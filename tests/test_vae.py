"""The generative model: what it computes, what it takes and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from oracles import z_scores
from tiny import LinearGaussian, binary_images, discrete_vae, exact_elbo, log_evidence, randomize
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from vae_lab import VAE, likelihoods
from vae_lab.estimators import Exact, Reparameterization
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.evidence import annealed, enumerated, importance_weighted
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.networks import MLP, Conv, Grid, Linear
from vae_lab.objectives import ELBO, IWAE
from vae_lab.priors import Prior

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
    assert vae.log_likelihood(binary_images(0)).shape == (0,)


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


def test_the_first_image_is_the_mean_of_the_data():
    vae = VAE((1, 4, 4), Linear(), Gaussian(2), likelihoods.Bernoulli())
    mean = torch.rand(1, 4, 4) * 0.9 + 0.05
    vae.initialize_bias(mean)
    image = vae.likelihood.mean(vae.decode(torch.zeros(1, 2)))[0]
    torch.testing.assert_close(image, mean, atol=0.02, rtol=0)
    assert vae.output_bias.requires_grad


# Data that is no image

OTHER_SHAPES = [pytest.param((6,), id="vector"), pytest.param((3, 2), id="series")]


def like_an_image(vae):
    """The same model of the same numbers, as the pixels of an image."""
    pixels = (1, 1, vae.output_bias.numel())
    image = VAE(pixels, vae.network, vae.latent, type(vae.likelihood)())
    state = vae.state_dict()
    image.load_state_dict(state | {"output_bias": state["output_bias"].reshape(pixels)})
    return image


@pytest.mark.parametrize("shape", OTHER_SHAPES)
@pytest.mark.parametrize("name", ["Bernoulli", "ContinuousBernoulli", "Gaussian"])
def test_a_vector_or_a_series_is_modelled_as_the_same_numbers_of_an_image(name, shape):
    vae = small_vae(Bernoulli(3), MLP((8,)), getattr(likelihoods, name)(), shape)
    image, x = like_an_image(vae), torch.rand(4, *shape).round()
    assert vae.shape == vae.output_bias.shape == shape
    for use in (
        lambda vae, x: ELBO()(vae, Exact(), x).objective,
        lambda vae, x: enumerated(vae, x),
        lambda vae, x: seeded(vae.elbo, x).elbo,
        lambda vae, x: seeded(vae.log_likelihood, x),
        lambda vae, x: seeded(vae.sample, 3),
        lambda vae, x: vae.reconstruct(x),
        lambda vae, x: vae.interpolate(x, x.flip(0), 3),
        lambda vae, x: (vae.initialize_bias(x.mean(0)), vae.output_bias)[1],
    ):
        ours, theirs = use(vae, x), use(image, x.reshape(-1, *image.shape))
        assert torch.equal(ours, theirs.reshape(ours.shape))


def seeded(function, *arguments):
    torch.manual_seed(1)
    return function(*arguments)


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_a_model_of_no_images_learns_is_measured_and_released(shape, tmp_path):
    vae, x = VAE(shape, MLP((16,)), Gaussian(2), likelihoods.Gaussian(0.1)), torch.rand(2, *shape)
    x = x.repeat(50, *[1] * len(shape))
    optimizer = torch.optim.Adam(vae.parameters(), 0.02)
    before = vae.elbo(x).elbo.mean()
    for _ in range(60):
        optimizer.zero_grad()
        (-vae(x).objective.mean()).backward()
        optimizer.step()
    assert vae.elbo(x).elbo.mean() > before + 5
    found = evaluate(vae, [x], samples=20, parts=("bound", "split"))
    assert {"log_likelihood", "mutual_information"} <= found.metrics.keys()
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path))
    assert loaded.shape == shape and torch.equal(loaded.reconstruct(x), vae.reconstruct(x))


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(6), r"the shape \[B, 6\], got \[6\]: type x\[None\] for one datum"),
        (torch.zeros(9, 2, 3), r"the shape \[B, 6\], got \[9, 2, 3\]$"),
        (torch.zeros(2, 6) + 2, r"the batch has 2: shift and scale the data"),
        (torch.tensor([[0.0, 0, 0, 0, np.nan, 0]]), r"nan at \[4\] of its datum 0: remove"),
    ],
)
def test_wrong_vectors_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        small_vae(shape=(6,)).elbo(x)


# What is handed to it

ESTIMATES = {
    "objective": lambda vae, x: ELBO()(vae, Reparameterization(), x).elbo,
    "bound": lambda vae, x: IWAE()(vae, Reparameterization(), x).objective,
    "call": lambda vae, x: vae(x).elbo,
    "elbo": lambda vae, x: vae.elbo(x).elbo,
    "log_likelihood": lambda vae, x: vae.log_likelihood(x),
    "importance_weighted": lambda vae, x: importance_weighted(vae, x, 3).bound,
    "annealed": lambda vae, x: annealed(vae, x, 2, 2).estimate,
    "enumerated": lambda vae, x: enumerated(small_vae(Bernoulli(3)), x),
    "log_px_z": lambda vae, x: vae.log_px_z(x, torch.zeros(len(x), 3)),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "interpolate": lambda vae, x: vae.interpolate(x, x),
}
ENCODE = {"encode": lambda vae, x: vae.encode(x).mean}
IMAGES = np.tile([[0.0, 1.0], [1.0, 0.0]], (2, 1, 2, 2))  # [2, 1, 4, 4], in float64


@pytest.mark.parametrize("take", ESTIMATES.values(), ids=ESTIMATES)
@pytest.mark.parametrize(
    "x, message",
    [
        (torch.full((2, 1, 4, 4), 255.0), "has 255: divide by 255"),
        (IMAGES * 2 - 1, "has -1: shift and scale"),
        (IMAGES * np.nan, "has nan at"),
    ],
)
def test_values_out_of_range_are_refused(take, x, message):
    with pytest.raises(ValueError, match=rf"needs values in \[0, 1\], the batch {message}"):
        take(small_vae(), x)


WRONG_IMAGES = [
    (torch.zeros(1, 4, 4), r"shape \[B, 1, 4, 4\], got \[1, 4, 4\]: type x\[None\] for one datum"),
    (torch.zeros(9, 4, 4), r"got \[9, 4, 4\]: type x\[:, None\]"),
    (torch.zeros(9, 4, 4, 1), r"got \[9, 4, 4, 1\]: type x.permute\(0, 3, 1, 2\)"),
    (np.zeros((9, 16)), r"got \[9, 16\]: type x.reshape\(-1, 1, 4, 4\)"),
    (torch.zeros(9, 3, 4, 4), r"must have the shape \[B, 1, 4, 4\], got \[9, 3, 4, 4\]$"),
    (torch.zeros(1, 2, 1, 4, 4), r"got \[1, 2, 1, 4, 4\]$"),
    (torch.zeros(()), r"got \[\]$"),
    (torch.zeros(2, 1, 4, 4).byte(), "x must hold floats, got torch.uint8: type x / 255 for bytes"),
    (torch.zeros(2, 1, 4, 4) * 1j, "x must hold floats, got torch.complex64: type torch.view_as_r"),
    (np.zeros((2, 1, 4, 4), bool), r"x must hold floats, got bool: .*, x \* 1.0 for bits"),
    (torch.zeros(2, 1, 4, 4).cfloat(), "x must hold floats, got torch.complex64"),
    (np.array("x"), "x must be a tensor or a numpy array of floats, got an array of <U1"),
    ([[0.0]], "x must be a tensor or a numpy array of floats, got list"),
    (torch.zeros(2, 1, 4, 4, device="meta"), "x is on meta, the model on cpu: type x.to..cpu"),
]


@pytest.mark.parametrize("x, message", WRONG_IMAGES)
@pytest.mark.parametrize("take", ENCODE.values(), ids=ENCODE)
def test_what_is_no_batch_of_its_images_is_refused(take, x, message):
    with pytest.raises(ValueError, match=message) as caught:
        take(small_vae(), x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("take", (ESTIMATES | ENCODE).values(), ids=ESTIMATES | ENCODE)
def test_every_door_looks_at_shape_and_type_and_takes_arrays(take):
    vae, answers = small_vae(), []
    for x in (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4, 4).byte(), [0.0]):
        with pytest.raises(ValueError, match=r"\[.*1, 4|hold floats|numpy array"):
            take(vae, x)
    for x in (torch.from_numpy(IMAGES).float(), torch.from_numpy(IMAGES), IMAGES):
        torch.manual_seed(1)
        answers.append(take(vae, x))
    torch.testing.assert_close(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2]) and answers[0].dtype == torch.float32


@pytest.mark.parametrize("change", [lambda x: x[:, :, ::-1], lambda x: x.astype(">f4"), np.float16])
def test_an_array_of_any_layout_is_taken(change):
    x = change(IMAGES)
    x.flags.writeable = False
    vae, plain = small_vae(), torch.tensor(np.ascontiguousarray(x, np.float32))
    assert torch.equal(vae.reconstruct(x), vae.reconstruct(plain))


WRONG = [
    (
        lambda vae, x: VAE((4, 4), Conv(), Gaussian(), likelihoods.Gaussian()),
        "three .*, got .4, 4.:",
    ),
    (
        lambda vae, x: VAE((), Linear(), Gaussian(), likelihoods.Gaussian()),
        r"integers, .*, got \(\)",
    ),
    (
        lambda vae, x: VAE((4,), Linear(), Gaussian(), vae.likelihood),
        "VAE of data with 3 axes, make",
    ),
    (
        lambda vae, x: VAE((4,), MLP(), Gaussian(), likelihoods.DiscretizedLogisticMixture()),
        r"is for images \[C, H, W\], got data of shape \(4,\): use a",
    ),
    (lambda vae, x: vae.sample(0), "num_images must be a positive integer, got 0"),
    (lambda vae, x: vae.sample(-1), "num_images must be a positive integer, got -1"),
    (lambda vae, x: vae.sample(2.0), "num_images must be a positive integer, got 2.0"),
    (lambda vae, x: vae.elbo(x, 0), "num_samples must be a positive integer, got 0"),
    (lambda vae, x: vae.log_likelihood(x, 1.5), "num_samples must be a positive integer, got 1.5"),
    (lambda vae, x: vae(x, Reparameterization), r"pass an object such as Reparameterization\(\)"),
    (lambda vae, x: vae(x, "arm"), r"pass an object such as Reparameterization\(\), got 'arm'"),
    (lambda vae, x: vae(x, None, "elbo"), "pass an object .*, got 'elbo'"),
    (lambda vae, x: vae.log_likelihood(x, 2, 0), "chunk must be a positive integer, got 0"),
    (lambda vae, x: vae.interpolate(x, x, 0), "steps must be a positive integer, got 0"),
    (lambda vae, x: vae.interpolate(x, x[:0]), "x0 and x1 must be equally many, got 2 and 0"),
    (lambda vae, x: vae.decode(torch.zeros(2)), r"z must have a shape that ends in \[3\], got \[2"),
    (lambda vae, x: vae.decode(torch.zeros(())), r"z must have a shape .*, got \[\]"),
    (lambda vae, x: vae.decode([0.0]), "z must be a tensor or a numpy array of floats, got list"),
    (lambda vae, x: vae.log_px_z(x, torch.zeros(5, 3)), r"as many data .*, got \[2\] and \[5\]"),
    (
        lambda vae, x: vae.log_px_z(x[:, :, 1:], torch.zeros(2, 3)),
        r"x must .* ends in \[1, 4, 4\], got \[2, 1, 3",
    ),
    (lambda vae, x: vae.posterior(x), r"features must have the shape \[B, 8\], got \[2, 1, 4, 4"),
    (lambda vae, x: vae.initialize_bias(x), r"mean must have the shape \[1, 4, 4\], got \[2, 1"),
    (lambda vae, x: vae.initialize_bias(255 * x[0]), r"data in \[0, 1\], got 0 to 255"),
    (
        lambda vae, x: vae.load_pretrained("x", "head"),
        "encoder, posterior, decoder, model or None, got 'head'",
    ),
    (lambda vae, x: VAE.from_pretrained(None), "a model's source is a path or a name, got None"),
    (
        lambda vae, x: vae.save_pretrained("x", torch.int8),
        "a type of floats.*, got torch.int8",
    ),
    (
        lambda vae, x: vae.save_pretrained("x", "float16"),
        "a type of floats.*, got 'float16'",
    ),
]


# Pictures of other sizes


def photo_vae(latent=None, **settings):
    likelihood = likelihoods.Gaussian(0.2, learned=True)
    return small_vae(latent, Grid((4, 6), **settings), likelihood, (3, 8, 12))


@pytest.mark.parametrize("make", MAKE)
def test_the_model_of_another_size_is_one_that_was_built_for_it(make):
    vae, shape = photo_vae(make(), attention=True), (3, 13, 9)
    built = VAE(shape, vae.network, make(), likelihoods.Gaussian(0.2, learned=True))
    built.load_state_dict(vae.state_dict())
    other, x = vae.at(*shape), torch.rand(2, *shape)
    for use in (
        lambda vae: seeded(vae, x).objective,
        lambda vae: seeded(vae.elbo, x).kl,
        lambda vae: seeded(vae.sample, 2),
        lambda vae: vae.reconstruct(x),
    ):
        assert torch.equal(use(other), use(built))
    assert other.shape == other.output_shape == shape and vae.latent.grid == (2, 3)


def test_the_model_of_another_size_is_the_same_model():
    vae = photo_vae()
    other, x = vae.at(3, 16, 16), torch.rand(2, 3, 16, 16)
    ours, theirs = vae.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    assert all(theirs[name] is tensor for name, tensor in ours.items())
    other(x).objective.sum().backward()
    assert all(p.grad is not None for p in vae.parameters() if p.requires_grad)
    vae.eval().double()
    assert other.dtype == other.latent.prior_parameters.dtype == torch.double
    assert not other.encoder.training and not other.decoder.training
    apart = copy.deepcopy(other)
    assert torch.equal(apart.reconstruct(x), other.reconstruct(x))
    with torch.no_grad():
        vae.output_bias.add_(1)
    assert torch.equal(other.output_bias, vae.output_bias)
    assert not torch.equal(apart.output_bias, vae.output_bias)


def test_the_model_of_another_size_compiles_and_is_released(tmp_path):
    vae = photo_vae()
    vae.compile(backend="eager")  # of its own size
    other, x = vae.at(3, 16, 17), torch.rand(2, 3, 16, 17)
    assert other(x).objective.shape == (2,)
    other.compile(backend="eager")
    assert other(x).objective.shape == (2,)
    loaded = VAE.from_pretrained(other.save_pretrained(tmp_path))
    assert loaded.shape == (3, 16, 17) and torch.equal(loaded.reconstruct(x), other.reconstruct(x))
    assert torch.equal(loaded.at(3, 8, 12).output_bias, vae.output_bias)


OTHER_SIZES = [
    (lambda vae: vae.encode(torch.rand(1, 3, 16, 16)), r"type vae.at\(3, 16, 16\) for the model"),
    (
        lambda vae: vae.elbo(torch.rand(1, 3, 16, 16)),
        r"got \[1, 3, 16, 16\]: type vae.at\(3, 16, 1",
    ),
    (lambda vae: vae.encode(torch.rand(3, 16, 16)), r"got \[3, 16, 16\]$"),
    (lambda vae: vae.encode(torch.rand(1, 8, 12, 3)), r"type x.permute\(0, 3, 1, 2\)"),
    (lambda vae: vae.at(1, 8, 8), r"shape must be \[3, H, W\], got \[1, 8, 8\]"),
    (lambda vae: vae.at(16, 16), r"shape must be \[3, H, W\], got \[16, 16\]"),
    (lambda vae: vae.at(3, 16, 0), r"shape must be positive integers, .* got \(3, 16, 0\)"),
    (
        lambda vae: small_vae().at(1, 8, 8),
        r"MLP takes data of shape \[1, 4, 4\] only: train with a f",
    ),
]


@pytest.mark.parametrize("call, message", OTHER_SIZES)
def test_a_mistake_with_a_size_is_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call(photo_vae())


def test_a_prior_of_one_size_is_not_taken_for_that_of_another():
    vae = photo_vae()
    p = vae.latent.prior()
    vae.prior = Prior()
    vae.prior.forward = lambda condition: p
    other, x = vae.at(3, 16, 16), torch.rand(1, 3, 16, 16)
    assert vae.sample(1).shape == (1, 3, 8, 12) and other.reconstruct(x).shape == x.shape
    with pytest.raises(ValueError, match=r"z of shape \[2, 3, 3\], pictures of .* \[4, 4, 3\]"):
        other.sample(1)


@pytest.mark.parametrize("call, message", WRONG)
def test_a_mistake_is_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        call(small_vae(), torch.from_numpy(IMAGES).float())
    assert "\n" not in str(caught.value) and not [*tmp_path.iterdir()]


def test_a_transposed_z_is_not_decoded():
    with pytest.raises(ValueError, match=r"ends in \[2, 3\], got \[5, 3, 2\]"):
        small_vae(Categorical(2, 3)).decode(torch.zeros(5, 3, 2))


@pytest.mark.parametrize("z", [np.ones(3), np.array([1, 0, 1]), torch.tensor([1, 0, 1])])
def test_a_point_may_be_an_array_or_whole_numbers(z):
    vae = small_vae()
    assert torch.equal(vae.decode(z), vae.decode(torch.as_tensor(z).float()))


@pytest.fixture
def looks(monkeypatch):
    """One entry for each time that values were looked at."""
    found, check = [], likelihoods.Likelihood.check
    monkeypatch.setattr(
        likelihoods.Likelihood, "check", lambda self, x: (found.append(1), check(self, x))
    )
    return found


def test_an_objective_looks_at_the_values_of_the_first_data_only(looks):
    """A look would make every step wait for an accelerator. What is blank is a dry run."""
    vae, x = small_vae(), torch.from_numpy(IMAGES).float()
    keys, step = vae.state_dict().keys(), ESTIMATES["objective"]
    step(vae, torch.zeros_like(x))
    with pytest.raises(ValueError, match="shift and scale"):
        step(vae, 2 * x - 1)
    looks.clear()
    for _ in range(3):
        step(vae, x)
        vae.log_px_z(x, torch.zeros(2, 3))
        vae.elbo(x, check=False)
    assert len(looks) == 1 and vae.state_dict().keys() == keys
    assert copy.deepcopy(vae).likelihood is not vae.likelihood


@pytest.mark.parametrize("network", [MLP((8,)), Grid((4,), attention=True)], ids=str)
def test_a_compiled_objective_looks_too_and_is_one_graph(network):
    vae, x = small_vae(network=network), torch.from_numpy(IMAGES).float()
    objective = ELBO()
    objective.compile(backend="eager", fullgraph=True)
    with pytest.raises(ValueError, match="shift and scale"):
        objective(vae, Reparameterization(), 2 * x - 1)
    assert objective(vae, Reparameterization(), x).elbo.shape == (2,)
    whole = torch.compile(small_vae(network=network), backend="eager", fullgraph=True)
    assert whole(x, Reparameterization(), ELBO()).elbo.shape == (2,)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_step_on_a_grid_is_the_eager_one(checkpointing):
    network = Grid((4, 6), attention=True, checkpointing=checkpointing)
    vae, x = small_vae(Gaussian(2), network, shape=(1, 9, 12)), torch.rand(3, 1, 9, 12)
    found = []
    for step in (vae, torch.compile(vae, backend="aot_eager")):
        torch.manual_seed(1)
        value = step(x, Reparameterization()).objective.mean()
        trained = [p for p in vae.parameters() if p.requires_grad]
        found.append([value, *torch.autograd.grad(value, trained)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_gradients_of_each_datum_are_looked_at_as_a_whole():
    vae, x, elbo = small_vae(Bernoulli(3)), torch.from_numpy(IMAGES).float(), ELBO()

    def loss(parameters, x):
        arguments = (x[None], Exact(), elbo)
        return torch.func.functional_call(vae, parameters, arguments).objective.sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))
    parameters = dict(vae.named_parameters())
    with pytest.raises(ValueError, match="shift and scale"):
        each(parameters, 2 * x - 1)
    alone = [torch.func.grad(loss)(parameters, image)["head.weight"] for image in x]
    torch.testing.assert_close(each(parameters, x)["head.weight"], torch.stack(alone))


def test_without_data_there_is_nothing_to_look_at():
    vae = small_vae().to("meta")
    x = torch.empty(2, 1, 4, 4, device="meta")
    assert vae(x).elbo.shape == (2,) and vae.elbo(x).elbo.is_meta


# Its call


@pytest.mark.parametrize("make", MAKE)
def test_a_call_is_the_elbo_and_trains(make):
    """Without bias for every latent; the gradient of `elbo` knows nothing of the sampling."""
    vae, x = discrete_vae(make()), binary_images().repeat(4000, 1, 1, 1)
    torch.manual_seed(1)
    terms = vae(x)
    values = terms.elbo.detach().unflatten(0, (4000, -1))
    with torch.no_grad():
        expected = vae.elbo(x).elbo.unflatten(0, (4000, -1))
    assert z_scores(values - expected, torch.zeros(3)).abs().max() < 4
    terms.objective.mean().backward()
    assert all(p.grad.any() for p in vae.parameters() if p.requires_grad)


def test_a_call_takes_an_estimator_and_an_objective():
    vae, x = discrete_vae(Bernoulli(3)), binary_images()
    called, told = vae(x, Exact(), ELBO(0.5)), ELBO(0.5)(vae, Exact(), x)
    assert all(torch.equal(a, b) for a, b in zip(called, told, strict=True))


def test_an_own_loop_of_many_processes_goes_through_the_call(tmp_path):
    """DistributedDataParallel sees every gradient; here of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        vae, seen = small_vae(), []

        def hook(state, bucket):
            seen.extend(map(id, bucket.parameters()))
            return allreduce_hook(state, bucket)

        wrapped = torch.nn.parallel.DistributedDataParallel(vae)
        wrapped.register_comm_hook(None, hook)
        (-wrapped(torch.from_numpy(IMAGES).float()).objective.mean()).backward()
        assert {*seen} == {id(p) for p in vae.parameters() if p.requires_grad}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("network", [MLP((8,)), Grid((4,))], ids=str)
def test_half_precision_networks_give_full_precision_distributions(network):
    vae = small_vae(network=network).bfloat16()
    q = vae.encode(torch.rand(2, 1, 4, 4).bfloat16())
    assert q.base_dist.loc.dtype == torch.float32
    assert vae.decode(q.sample().bfloat16()).dtype == torch.float32
