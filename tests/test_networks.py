"""One battery over every network and image shape."""

import pytest
import torch
from tiny import gradients, randomize
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap

from vae_lab import VAE, likelihoods
from vae_lab.estimators import RELAX, DReG, Exact, MuProp, Reparameterization, ScoreFunction
from vae_lab.latents import Bernoulli, Gaussian
from vae_lab.networks import MLP, Conv, Grid, Linear, ResNet
from vae_lab.networks.base import ACTIVATIONS, gain
from vae_lab.objectives import ELBO, IWAE

NETWORKS = [
    Linear(),
    MLP((32, 16)),
    MLP(()),
    MLP([24], "tanh"),
    Conv((8, 16), features=24),
    Conv((4, 8, 8, 8, 8), features=8, activation="gelu"),  # more halvings than a small image has
    ResNet((8, 16), features=24),
    ResNet((12, 20, 9), blocks=2, features=16, activation="relu"),
]
VECTOR, SERIES = (5,), (7, 3)
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 64, 64), (2, 48, 32), (5, 7, 9), (1, 4, 5), (3, 1, 1)]

networks = pytest.mark.parametrize("network", NETWORKS, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pair(network, shape, latent_size=6):
    return network.encoder(shape), network.decoder(latent_size, shape)


@networks
@shapes
def test_shapes_and_gradients(network, shape):
    encoder, decoder = pair(network, shape)
    for batch in (2, 0):
        x = torch.rand(batch, *shape, requires_grad=True)
        features = encoder(x)
        assert features.shape == (batch, encoder.features)
        z = torch.randn(batch, 6, requires_grad=True)
        params = decoder(z)
        assert params.shape == (batch, *shape)
        leaves = [x, z, *encoder.parameters(), *decoder.parameters()]
        total = features.square().sum() + params.square().sum()
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("network", NETWORKS[:4], ids=str)
@pytest.mark.parametrize("shape", [VECTOR, SERIES], ids=str)
def test_a_vector_and_a_series_need_no_channels(network, shape):
    encoder, decoder = pair(network, shape)
    assert encoder(torch.rand(4, *shape)).shape == (4, encoder.features)
    assert decoder(torch.randn(4, 6)).shape == (4, *shape)


@networks
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_gradients_reach_every_parameter(network, shape):
    encoder, decoder = pair(network, shape)
    loss = encoder(torch.rand(8, *shape)).square().sum() + decoder(torch.randn(8, 6)).square().sum()
    loss.backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad.abs().sum() > 0, name


@networks
def test_one_datum_does_not_depend_on_its_batch(network, float64):
    encoder, decoder = pair(network, (3, 9, 12))
    x, z = torch.rand(5, 3, 9, 12), torch.randn(5, 6)
    torch.testing.assert_close(encoder(x)[2:3], encoder(x[2:3]))
    torch.testing.assert_close(decoder(z)[2:3], decoder(z[2:3]))


def test_batch_normalisation_would_be_caught(float64):
    x = torch.rand(5, 3, 9, 12)
    mixing = nn.BatchNorm2d(3)
    assert (mixing(x)[2:3] - mixing(x[2:3])).abs().max() > 1e-3


@networks
def test_state_dict_restores_the_function(network):
    z = torch.randn(3, 6)
    (encoder, decoder), (again, decoder_again) = (pair(network, (2, 7, 9)) for _ in range(2))
    again.load_state_dict(encoder.state_dict(), strict=True)
    decoder_again.load_state_dict(decoder.state_dict(), strict=True)
    assert torch.equal(decoder(z), decoder_again(z))
    x = torch.rand(3, 2, 7, 9)
    assert torch.equal(encoder(x), again(x))


@networks
def test_initial_outputs_are_of_order_one(network):
    decoder = network.decoder(20, (3, 28, 28))
    assert 0.3 < decoder(torch.randn(256, 20)).std() < 3


@networks
def test_the_whole_image_can_be_reached(network):
    # An output padding alone would leave the last row of an odd image to the bias.
    decoder = network.decoder(6, (1, 7, 9))
    assert decoder(torch.randn(32, 6)).std(0).min() > 1e-3


@networks
def test_prints_as_the_call_that_makes_it(network):
    assert eval(repr(network), {type(each).__name__: type(each) for each in NETWORKS}) == network


@networks
def test_recipe_is_a_value(network):
    arguments = {name: getattr(network, name) for name in network.__dataclass_fields__}
    assert type(network)(**arguments) == network
    assert hash(type(network)(**arguments)) == hash(network)


def checkpointing(again, latent, **settings):
    torch.manual_seed(0)
    network = Grid((4, 6), attention=True, checkpointing=again, **settings)
    return randomize(VAE((3, 8, 8), network, latent, likelihoods.Gaussian(0.5)), 0.2)


@pytest.mark.parametrize(
    "latent, estimator, objective",
    [
        (Gaussian, Reparameterization, ELBO),
        (Gaussian, DReG, IWAE),
        (Bernoulli, ScoreFunction, IWAE),
        (Bernoulli, RELAX, ELBO),  # differentiates twice
        (Bernoulli, MuProp, ELBO),
        (Bernoulli, Exact, ELBO),
    ],
)
def test_checkpointing_gives_the_same_gradients(latent, estimator, objective):
    x = torch.rand(2, 3, 8, 8)
    found = []
    for again in (False, True):
        vae = checkpointing(again, latent(1))
        torch.manual_seed(1)
        found.append(gradients(objective(), vae, estimator(), x))
    assert torch.equal(*found) and found[0].any()


def test_checkpointing_gives_the_gradient_of_each_datum():
    x, found = torch.rand(4, 3, 8, 8), []
    for again in (False, True):
        encoder = Grid((4, 6), checkpointing=again).encoder((3, 8, 8))
        torch.manual_seed(0)
        weights = dict(randomize(encoder).named_parameters())

        def squares(weights, datum, encoder=encoder):
            return functional_call(encoder, weights, (datum[None],)).square().sum()

        found.append(vmap(grad(squares), (None, 0))(weights, x))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_checkpointing_keeps_less():
    def kept(again):
        sizes = {}

        def note(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        decoder = checkpointing(again, Gaussian(2), blocks=2).decoder
        with saved_tensors_hooks(note, lambda tensor: tensor):
            result = decoder(torch.randn(1, 16, 16, 2))  # keeps all alive
        return sum(sizes.values()) if result.requires_grad else 0

    assert 0 < kept(True) < 0.5 * kept(False)


def test_mlp_without_hidden_layers_is_linear(float64):
    (encoder, decoder), (flat, affine) = pair(MLP(()), (1, 4, 4)), pair(Linear(), (1, 4, 4))
    affine.load_state_dict(decoder.state_dict())
    z, x = torch.randn(3, 6), torch.rand(3, 1, 4, 4)
    assert torch.equal(decoder(z), affine(z))
    assert torch.equal(encoder(x), flat(x))
    assert encoder.features == flat.features == 16


def test_gain_keeps_the_second_moment():
    assert gain("relu") == pytest.approx(2**0.5, rel=1e-4)
    for name, kind in ACTIVATIONS.items():
        h = torch.randn(200_000)
        assert (gain(name) * kind()(h)).square().mean() == pytest.approx(1, rel=0.05), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [MLP, Conv, ResNet])
def test_every_activation_builds(kind, activation):
    decoder = kind(activation=activation).decoder(2, (1, 6, 6))
    assert decoder(torch.randn(1, 2)).shape == (1, 1, 6, 6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((512, 0)), r"hidden must be a sequence of positive integers, got \(512, 0\)"),
        (lambda: MLP(512), "hidden must be a sequence of positive integers, got 512"),
        (lambda: MLP(activation="rleu"), "activation must be one of relu, .*silu, got 'rleu'"),
        (lambda: Conv(()), r"channels must be a non-empty sequence .*, got \(\)"),
        (lambda: Conv(features=-1), "features must be a positive integer, got -1"),
        (lambda: ResNet(blocks=0), "blocks must be a positive integer, got 0"),
        (lambda: ResNet((32, 6.5)), r"channels must be .*, got \(32, 6.5\)"),
        (lambda: Conv().encoder((28, 28)), r"\[C, H, W\], got \(28, 28\): other data than images"),
        (lambda: ResNet().decoder(2, (28,)), r"\[C, H, W\], got \(28,\): other data than images"),
        (lambda: Linear().encoder(()), r"shape must be positive integers, .*, got \(\)"),
        (lambda: Conv().decoder(2, (1, 0, 8)), r"\[C, H, W\], got \(1, 0, 8\)"),
        (lambda: MLP().decoder(0, (1, 8, 8)), "latent_size must be a positive integer, got 0"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()
