"""Latent variables on a grid: what it must have in common with a flat model, and what follows from
its being a convolution."""

import copy
import functools
import math

import pytest
import torch
from estimator_cases import INSTANCES
from tiny import SMALL_GRID, LinearGaussian, Patches, randomize
from torch import nn

from vae_lab import VAE, likelihoods
from vae_lab.estimators import Reparameterization
from vae_lab.evaluation.evidence import annealed
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.networks import MLP, Conv, Grid
from vae_lab.networks.base import Encoder
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO

LATENTS = {
    "codes": functools.partial(Categorical, 2, 3),
    "bits": functools.partial(Bernoulli, 3),
    "numbers": functools.partial(Gaussian, 2),
    "counts": functools.partial(Poisson, 2),
}
latents = pytest.mark.parametrize("make", LATENTS.values(), ids=LATENTS)
TWICE = Grid((4, 6), padding="circular")  # 4 x 4 pixels are a place
EVERYWHERE = [  # where no place is at a border
    TWICE,
    Grid((4, 6), norm="group", padding="circular", activation="gelu"),
    Grid((4, 6), attention=True, padding="circular"),
    Grid((3, 4, 5), blocks=2, padding="circular", checkpointing=True),
]
everywhere = pytest.mark.parametrize("network", EVERYWHERE, ids=str)


def model(latent, network, shape):
    return randomize(VAE(shape, network, latent, likelihoods.Bernoulli()).double())


def pictures(count, *shape):
    return torch.rand(count, *shape, dtype=torch.float64).round()


# A grid of one place is a flat model.


class Flat:
    """The layers of a grid for a picture that is one place, with nothing said of a grid."""

    def encoder(self, shape):
        trunk = SMALL_GRID.encoder(shape)
        return Encoder(trunk, nn.Flatten(), features=trunk.features)

    def decoder(self, latent_size, shape):
        return nn.Sequential(nn.Unflatten(1, (1, 1, -1)), SMALL_GRID.decoder(latent_size, shape))


def one_place(make, shape=(2, 2, 2)):
    """A model with a grid of 1 x 1, and the flat one of the same weights."""
    grid, flat = model(make(), SMALL_GRID, shape), model(make(), Flat(), shape)
    with torch.no_grad():
        for theirs, ours in zip(flat.parameters(), grid.parameters(), strict=True):
            theirs.copy_(ours)  # the bias of a channel is that of each of its pixels
    assert grid.latent.grid == (1, 1) and flat.latent.grid == ()
    return grid, flat


def trained(vae, estimator, objective, x):
    """The terms, and all gradients; that of the output bias by itself, for each channel."""
    torch.manual_seed(2)
    terms = objective(vae, estimator, x)
    terms.objective.sum().backward()
    gradients = {n: p.grad for n, p in [*vae.named_parameters(), *estimator.named_parameters()]}
    bias = gradients.pop("output_bias").sum((1, 2))
    return [*terms, *(g for g in gradients.values() if g is not None)], bias


def pairs():
    for cls, arguments in (instance.values for instance in INSTANCES):
        for name, make in LATENTS.items():
            if cls.accepts(make().prior()):
                label = "-".join([cls.__name__, *map(str, arguments.values()), name])
                yield pytest.param(cls, arguments, make, id=label)


@pytest.mark.parametrize("cls, arguments, make", [*pairs()])
def test_a_grid_of_one_place_is_a_flat_model(cls, arguments, make):
    """Bit for bit, with every estimator: a learned baseline sees the features that it saw."""
    models = one_place(functools.partial(make, learn_prior=True))
    estimator, x = cls(**arguments).double(), pictures(3, 2, 2, 2)
    objective = ELBO() if cls.single_sample else IWAE()
    objective(models[0], estimator, x)  # lazy layers get their shape
    (ours, bias), (theirs, flat_bias) = (
        trained(vae, copy.deepcopy(estimator), objective, x) for vae in models
    )
    assert len(ours) == len(theirs) > 10
    assert all(torch.equal(a.flatten(), b.flatten()) for a, b in zip(ours, theirs, strict=True))
    torch.testing.assert_close(bias, flat_bias)  # its sum has another order


@latents
def test_what_a_model_is_for_is_the_same_with_a_grid_of_one_place(make):
    grid, flat = one_place(make)
    x = pictures(3, 2, 2, 2)
    for use in (
        lambda vae: vae.elbo(x, 5).kl,
        lambda vae: vae.log_likelihood(x, 20),
        lambda vae: vae.sample(4),
        lambda vae: vae.reconstruct(x),
        lambda vae: vae.interpolate(x, x.flip(0), 4),
    ):
        torch.manual_seed(1)
        ours = use(grid)
        torch.manual_seed(1)
        assert torch.equal(ours, use(flat))


# All places have the family and the prior in common.


@latents
@pytest.mark.parametrize("learn_prior", [False, True])
def test_the_kl_of_a_grid_is_that_of_its_places(make, learn_prior):
    """In the order rows, columns, variables; what trains the prior is the sum over the places."""
    grid, flat = (randomize(make(learn_prior=learn_prior).double()) for _ in range(2))
    flat.load_state_dict(grid.state_dict())
    grid.bind((2, 3))
    parameters = torch.randn(4, 2, 3, grid.parameter_size, dtype=torch.float64)
    kl, places = grid.kl(grid.distribution(parameters)), flat.kl(flat.distribution(parameters))
    assert kl.shape == (4, grid.num_variables) and places.shape[:3] == (4, 2, 3)
    assert torch.equal(grid.at_places(kl), places) and torch.equal(kl, places.flatten(1))
    assert grid.num_variables == 6 * flat.num_variables
    if learn_prior:
        for found in (kl, places):
            found.sum().backward()
        gradients = grid.prior_parameters.grad, flat.prior_parameters.grad
        torch.testing.assert_close(*gradients)
        assert gradients[0].all()


@latents
def test_draws_of_the_prior_are_independent_draws_of_a_places_prior(make):
    """Also at a temperature, as the explorer draws them."""
    grid = randomize(make(learn_prior=True))
    flat = copy.deepcopy(grid)
    grid.bind((2, 3))
    z = grid.prior().sample((5,))
    torch.testing.assert_close(grid.prior().log_prob(z), flat.prior().log_prob(z).sum((1, 2)))
    assert grid.embed(z).shape == (5, 2, 3, grid.width)
    cold = grid.numbers(grid.sample(4000, temperature=0.5)).float()
    expected = flat.numbers(flat.sample(24_000, temperature=0.5)).float()
    for moment in (torch.mean, torch.std):
        of_places = moment(cold, 0).reshape(6, -1)
        torch.testing.assert_close(
            of_places, moment(expected, 0).expand(6, -1), rtol=0.1, atol=0.05
        )


# What a convolution must and must not know.


@everywhere
@latents
def test_a_shifted_picture_has_a_shifted_z_and_reconstruction(make, network):
    places, stride = (3, 4), network.stride
    vae = model(make(), network, (2, *(stride * side for side in places)))
    x = pictures(2, *vae.shape)
    for down, right in ((1, 0), (0, 1), (2, 3)):
        shifted = x.roll((down * stride, right * stride), (-2, -1))
        q, moved = (vae.encode(pixels) for pixels in (x, shifted))
        for a, b in ((q.mean, moved.mean), (q.variance, moved.variance)):
            torch.testing.assert_close(a.roll((down, right), (1, 2)), b)
            assert not torch.allclose(a, b), "all places alike would prove nothing"
        z = vae.latent.prior().sample((2,))
        decoded = vae.decode(z.roll((down, right), (1, 2)))
        pixels = (down * stride, right * stride)
        torch.testing.assert_close(vae.decode(z).roll(pixels, (-2, -1)), decoded)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", ["circular", "replicate", "zeros", "reflect"])
def test_a_latent_that_is_the_same_everywhere_leaves_no_checkerboard(channels, padding):
    """At first; away from the border, whose width is that of what a pixel sees."""
    network, border = Grid((4, 6), padding=padding), {"zeros": 16}.get(padding, 0)
    decoder = network.decoder(3, (channels, 64, 64)).double()
    randomize(decoder[:-2], 0.4)  # all but how the output begins
    z = torch.randn(2, 1, 1, 3, dtype=torch.float64).expand(-1, 16, 16, -1)
    picture = decoder(z)[..., border : 64 - border, border : 64 - border]
    flat = picture[..., :1, :1]
    torch.testing.assert_close(picture, flat.expand_as(picture))
    assert flat.std() > 1e-3


@pytest.mark.parametrize("norm", ["place", "group"])
def test_what_lies_far_away_is_seen_through_group_norm_and_attention_only(norm):
    for attention in (False, True):
        encoder = Grid((4, 6), norm=norm, attention=attention).encoder((1, 64, 64)).double()
        randomize(encoder)  # a fresh block is the identity
        x = pictures(1, 1, 64, 64)
        change = x.clone()
        change[..., :4, :4] = 1 - change[..., :4, :4]
        far = (encoder(x) - encoder(change))[:, 10:, 10:].abs().max()
        assert (far > 1e-9) == (attention or norm == "group")


def test_a_learned_baseline_sees_the_features_of_the_picture():
    """Their mean over the places: as many numbers for a picture of any size."""
    for shape in ((1, 8, 12), (1, 4, 4)):
        vae, x = model(Gaussian(2), TWICE, shape), pictures(3, *shape)
        context = vae.infer(x).context
        assert context.shape == (3, 6)
        torch.testing.assert_close(context, vae.features(x).mean((1, 2)))


# Other sizes after training.


@latents
def test_a_model_at_another_size_is_the_same_model(make):
    vae = model(make(learn_prior=True), TWICE, (1, 8, 8))
    wide = vae.at(1, 8, 16)
    x = pictures(2, 1, 8, 8)
    twice = torch.cat([x, x], -1)  # circular: either half sees what the picture saw
    torch.testing.assert_close(wide.encode(twice).mean, torch.cat([vae.encode(x).mean] * 2, 2))
    torch.testing.assert_close(wide.reconstruct(twice), torch.cat([vae.reconstruct(x)] * 2, -1))
    torch.testing.assert_close(wide.elbo(twice).kl.sum(-1), 2 * vae.elbo(x).kl.sum(-1))
    assert vae.latent.grid == (2, 2) and wide.latent.grid == (2, 4) and vae.shape == (1, 8, 8)
    assert all(a is b for a, b in zip(vae.parameters(), wide.parameters(), strict=True))
    again = wide.at(1, 8, 8)
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))


@pytest.mark.parametrize("height, width", [(1, 1), (3, 5), (7, 8), (13, 2)])
def test_any_height_and_width(height, width):
    vae = model(Categorical(1, 5), Grid((4, 6)), (3, height, width))
    x = pictures(2, *vae.shape)
    assert vae.latent.grid == (math.ceil(height / 4), math.ceil(width / 4))
    assert vae.reconstruct(x).shape == x.shape == vae.sample(2).shape
    assert vae.elbo(x).elbo.isfinite().all()


def test_the_first_picture_is_the_mean_colour():
    vae = VAE((3, 8, 12), TWICE, Gaussian(2), likelihoods.Gaussian())
    mean = torch.rand(3, 8, 12)
    vae.initialize_bias(mean)
    assert torch.equal(vae.output_bias, mean.mean((1, 2), keepdim=True))
    assert vae.at(3, 16, 8).sample(2).shape == (2, 3, 16, 8)


@pytest.mark.parametrize("kind", [likelihoods.Bernoulli, likelihoods.ContinuousBernoulli])
def test_a_decoder_that_meets_data_starts_at_their_mean_colour(kind):
    """Which is not that of a picture of the mean logits."""
    vae = VAE((1, 8, 8), TWICE, Gaussian(2), kind())
    x = (torch.rand(50, 1, 8, 8) > torch.linspace(0.05, 0.95, 8)).float()
    vae.initialize(x)
    found = vae.output_bias.clone()
    vae.initialize_bias(x.mean(0))
    torch.testing.assert_close(found, vae.output_bias)


# Probabilistic PCA of the patches, all of which is known.


def principal(model):
    """Sets the model to probabilistic PCA of its pictures' patches. Their principal variances, and
    that of the noise.

    Source: Tipping & Bishop, *Probabilistic Principal Component Analysis*, JRSS B 1999, eqs. 6-8
    """
    vae, stride = model.vae, model.vae.network.stride
    patches = nn.functional.pixel_unshuffle(model.x, stride).permute(0, 2, 3, 1).flatten(0, 2)
    mean, (values, vectors) = patches.mean(0), torch.linalg.eigh(patches.T.cov(correction=0))
    kept = vae.latent.width
    sigma2 = values[:-kept].mean()
    scales = (values[-kept:] - sigma2).sqrt()
    weight = vectors[:, -kept:] * scales  # [D, L]
    precision = values[-kept:] / sigma2  # of the posterior, in every direction
    with torch.no_grad():
        vae.likelihood.log_sigma.fill_(sigma2.log() / 2)
        vae.decoder[1].weight.copy_(weight[..., None, None])
        vae.decoder[1].bias.copy_(mean)
        vae.output_bias.zero_()
        vae.latent.prior_parameters.zero_()
        vae.encoder[1].weight.copy_(torch.eye(len(mean))[..., None, None])
        vae.encoder[1].bias.copy_(-mean)
        gain = (weight / (sigma2 * precision)).T  # [L, D]
        vae.head.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        vae.head.bias.copy_(torch.cat([torch.zeros(kept), -precision.log() / 2]))
    return values, sigma2


@pytest.fixture
def pca():
    """A model with 2 x 2 places of 2 variables, probabilistic PCA of its 50 pictures."""
    model = LinearGaussian(Gaussian(2), network=Patches(), shape=(1, 4, 4), learned=True)
    scale = torch.tensor([[0.1, 0.5], [1.0, 0.6]], dtype=torch.float64).repeat(2, 2)
    model.x = torch.rand(50, 1, 4, 4, dtype=torch.float64) * scale
    return model, *principal(model)


def test_a_linear_gaussian_grid_is_probabilistic_pca(pca):
    """Its evidence, and its posterior, at which every sample's weight is the evidence."""
    model, values, sigma2 = pca
    variances = torch.cat([sigma2.expand(2), values[-2:]])  # of the model, the data's own but two
    per_patch = -0.5 * (4 * math.log(2 * math.pi) + variances.log().sum() + 4)  # the mean, eq. 4
    evidence = model.log_evidence()
    torch.testing.assert_close(evidence.mean(), 4 * per_patch)
    q, posterior = model.vae.encode(model.x).base_dist, model.posterior()
    torch.testing.assert_close(q.mean.flatten(1), posterior.mean)
    torch.testing.assert_close(q.variance.flatten(1).diag_embed(), posterior.covariance_matrix)
    torch.testing.assert_close(model.vae.log_likelihood(model.x, 3), evidence)
    torch.testing.assert_close(annealed(model.vae, model.x, 2, 5).estimate, evidence)
    terms = MonteCarloELBO()(model.vae, Reparameterization(2), model.x)
    torch.testing.assert_close(terms.objective, evidence)


def test_probabilistic_pca_is_the_maximum(pca):
    """Nothing moves: not the encoder, the decoder, nor the learned sigma."""
    model, _, _ = pca
    model.elbo().mean().backward()
    for name, parameter in model.vae.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() < 1e-10, name


# What cannot be


WRONG = [
    (
        lambda: model(Gaussian(2), Grid(), (5,)),
        r"\[C, H, W\], got \(5,\): other data than images needs an MLP",
    ),
    (
        lambda: model(Gaussian(2), MLP((3,)), (1, 4, 4)).at(1, 8, 8),
        r"MLP takes data of shape \[1, 4, 4\] only: train with a fully convolutional network",
    ),
    (lambda: model(Gaussian(2), Conv((3,)), (1, 4, 4)).at(1, 8, 8), r"Conv takes data of shape"),
    (
        lambda: model(Gaussian(2), Grid((3,), padding="reflect"), (1, 4, 4)).at(1, 2, 8),
        r"padding=reflect needs 2 x 2 places or more, got 1 x 4 of 2 pixels",
    ),
    (lambda: model(Gaussian(2), TWICE, (1, 4, 4)).at(3, 4, 4), r"be \[1, H, W\], got \[3, 4, 4\]"),
    (lambda: model(Gaussian(2), TWICE, (1, 4, 4)).at(8, 8), r"be \[1, H, W\], got \[8, 8\]"),
    (
        lambda: model(Gaussian(2), TWICE, (1, 4, 8)).decode(torch.zeros(3, 2, 2)),
        r"z must have a shape that ends in \[1, 2, 2\], got \[3, 2, 2\]",
    ),
    (
        lambda: model(Gaussian(2), TWICE, (1, 4, 8)).reconstruct(torch.zeros(2, 1, 8, 8)),
        r"\[B, 1, 4, 8\], got \[2, 1, 8, 8\]",
    ),
]


@pytest.mark.parametrize("call, message", WRONG)
def test_a_mistake_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_latent_belongs_to_one_grid():
    latent, network = Gaussian(2), Grid((4,))
    vae = VAE((1, 4, 4), network, latent, likelihoods.Bernoulli())
    with pytest.raises(ValueError, match=r"belongs to a VAE with grid \[2, 2\], make another"):
        VAE((1, 8, 8), network, latent, likelihoods.Bernoulli())
    assert vae.at(1, 8, 8).latent.grid == (4, 4) and latent.grid == (2, 2)
    VAE(
        (1, 4, 4), network, latent, likelihoods.Bernoulli()
    )  # the same grid: as two flat models may share one
