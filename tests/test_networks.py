"""One battery over every network and shape of data."""

import pytest
import torch
from tiny import gradients, randomize
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap

from vae_lab import VAE, likelihoods
from vae_lab.estimators import RELAX, DReG, Exact, MuProp, Reparameterization, ScoreFunction
from vae_lab.latents import Bernoulli, Gaussian
from vae_lab.networks import MLP, Conv, Grid, Linear, ResNet, TemporalConv, Transformer
from vae_lab.networks.base import ACTIVATIONS, gain, grid
from vae_lab.networks.grid import AROUND
from vae_lab.networks.layers import Attention, DoublingConv, Residual
from vae_lab.networks.mlp import GATED_GAIN
from vae_lab.objectives import ELBO, IWAE

NETWORKS = [
    Linear(),
    MLP((32, 16)),
    MLP(()),
    MLP([24], "tanh"),
    MLP((16, 8), "leaky_relu", negative_slope=0.3),
    Conv((8, 16), features=24),
    Conv((4, 8, 8, 8, 8), features=8, activation="gelu"),  # more halvings than a small image has
    ResNet((8, 16), features=24),
    ResNet((12, 20, 9), blocks=2, features=16, activation="relu"),
    Grid((8, 12)),
    Grid((6,), blocks=2, norm="group", padding="replicate", activation="relu"),
    Grid((4, 32, 16, 8), attention=True, checkpointing=True),
    TemporalConv((8, 12), features=24),
    TemporalConv((8, 8, 8, 8), blocks=2, kernel=1, features=8, activation="relu"),
    Transformer(32, layers=1),
    Transformer(12, activation="relu"),
]
OF_SERIES = TemporalConv, Transformer
VECTOR, SERIES = (5,), (7, 3)
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 64, 64), (2, 48, 32), (5, 7, 9), (1, 4, 5), (3, 1, 1)]

networks = pytest.mark.parametrize("network", NETWORKS, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pair(network, shape, latent_size=6):
    return network.encoder(shape), network.decoder(latent_size, shape)


def suited(network, shape):
    """A shape [C, H, W] of pictures, or [H, W] of series for a network that is for those."""
    return shape[1:] if isinstance(network, OF_SERIES) else shape


def latents(network, count, shape, size=6):
    """What the decoder takes for pictures of this shape: [N, size], on a grid [N, h, w, size]."""
    return torch.randn(count, *grid(network, shape), size)


def decoded(network, shape):
    """The shape of what it gives: that of the datum, or whole places."""
    if isinstance(network, OF_SERIES):
        return shape
    stride = getattr(network, "stride", 1)
    return (shape[0], *(stride * side for side in grid(network, shape) or shape[1:]))


@networks
@shapes
def test_shapes_and_gradients(network, shape):
    shape = suited(network, shape)
    encoder, decoder = pair(network, shape)
    for batch in (2, 0):
        x = torch.rand(batch, *shape, requires_grad=True)
        features = encoder(x)
        assert features.shape == (batch, *grid(network, shape), encoder.features)
        z = latents(network, batch, shape).requires_grad_()
        params = decoder(z)
        assert params.shape == (batch, *decoded(network, shape))
        leaves = [x, z, *encoder.parameters(), *decoder.parameters()]
        total = features.square().sum() + params.square().sum()
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("network", NETWORKS[:5], ids=str)
@pytest.mark.parametrize("shape", [VECTOR, SERIES], ids=str)
def test_a_vector_and_a_series_need_no_channels(network, shape):
    encoder, decoder = pair(network, shape)
    assert encoder(torch.rand(4, *shape)).shape == (4, encoder.features)
    assert decoder(torch.randn(4, 6)).shape == (4, *shape)


@networks
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_gradients_reach_every_parameter(network, shape):
    shape = suited(network, shape)
    encoder, decoder = pair(network, shape)
    for block in (m for part in (encoder, decoder) for m in part.modules()):
        if isinstance(block, Residual):  # which begins as the identity
            nn.init.normal_(block[-1].weight)
    z = latents(network, 8, shape)
    loss = encoder(torch.rand(8, *shape)).square().sum() + decoder(z).square().sum()
    loss.backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad.abs().sum() > 0, name


@networks
def test_gradients_have_gradients(network):
    """Control variates are trained by those of the estimate's gradient."""
    shape = suited(network, (1, 8, 12))
    decoder = network.decoder(6, shape)
    z = latents(network, 3, shape).requires_grad_()
    (slope,) = torch.autograd.grad(decoder(z).square().sum(), z, create_graph=True)
    curvature = torch.autograd.grad(slope.square().sum(), [z, *decoder.parameters()])
    assert all(g.isfinite().all() for g in curvature) and curvature[0].any()


def test_attention_is_the_same_with_a_gradient_and_without(float64):
    layer, x = Attention(64), torch.randn(2, 64, 3, 5)
    with torch.no_grad():
        fused = layer(x)
    torch.testing.assert_close(layer(x), fused)


@pytest.mark.parametrize("padding", AROUND)
def test_doubling_in_the_convolution_is_doubling_before_it(padding, float64):
    """By the layers and padding that torch has for it."""
    layer, before = DoublingConv(3, 2), nn.Conv2d(3, 2, 3, padding=1, padding_mode=padding)
    before.load_state_dict(layer.state_dict())
    in_one = nn.Sequential(AROUND[padding](1), layer)
    apart = nn.Sequential(nn.Upsample(scale_factor=2), before)
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 8, 10)
    torch.testing.assert_close(in_one(x), apart(x))
    ours, theirs = (
        torch.autograd.grad((f(x) * y).sum(), [*f.parameters()]) for f in (in_one, apart)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("height, width", [(8, 8), (7, 5)])
def test_the_convolutions_of_a_grid_find_channels_beside_each_other(height, width):
    """Anything else they would lay out anew, forward and backward."""
    found = []
    trunk = Grid((4, 6)).encoder((3, height, width))
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, inputs: found.extend(inputs))
    trunk(torch.randn(2, 3, height, width))
    assert len(found) == 6
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found)


@networks
def test_one_datum_does_not_depend_on_its_batch(network, float64):
    shape = suited(network, (3, 9, 12))
    encoder, decoder = pair(network, shape)
    x, z = torch.rand(5, *shape), latents(network, 5, shape)
    torch.testing.assert_close(encoder(x)[2:3], encoder(x[2:3]))
    torch.testing.assert_close(decoder(z)[2:3], decoder(z[2:3]))


def test_batch_normalisation_would_be_caught(float64):
    x = torch.rand(5, 3, 9, 12)
    mixing = nn.BatchNorm2d(3)
    assert (mixing(x)[2:3] - mixing(x[2:3])).abs().max() > 1e-3


@networks
def test_state_dict_restores_the_function(network):
    shape = suited(network, (2, 7, 9))
    z = latents(network, 3, shape)
    (encoder, decoder), (again, decoder_again) = (pair(network, shape) for _ in range(2))
    again.load_state_dict(encoder.state_dict(), strict=True)
    decoder_again.load_state_dict(decoder.state_dict(), strict=True)
    assert torch.equal(decoder(z), decoder_again(z))
    x = torch.rand(3, *shape)
    assert torch.equal(encoder(x), again(x))


@networks
def test_initial_outputs_are_of_order_one(network):
    shape = suited(network, (3, 28, 28))
    decoder = network.decoder(20, shape)
    assert 0.3 < decoder(latents(network, 256, shape, 20)).std() < 3


@networks
def test_the_whole_image_can_be_reached(network):
    # An output padding alone would leave the last row of an odd image to the bias.
    shape = suited(network, (1, 7, 9))
    decoder = network.decoder(6, shape)
    assert decoder(latents(network, 32, shape)).std(0).min() > 1e-3


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
    steep = nn.LeakyReLU(0.3)(h) * gain("leaky_relu", negative_slope=0.3)
    assert steep.square().mean() == pytest.approx(1, rel=0.02)
    gates = torch.nn.functional.glu(torch.randn(200_000, 2))
    assert (GATED_GAIN * gates).square().mean() == pytest.approx(1, rel=0.05)


def test_a_gated_layer_is_a_product_of_two():
    torch.manual_seed(0)
    encoder = MLP((3,), "glu").encoder((5,))
    dense = encoder[1]
    x = torch.randn(4, 5)
    (w, v), (b, c) = dense.weight.chunk(2), dense.bias.chunk(2)
    assert torch.allclose(encoder(x), (x @ w.T + b) * torch.sigmoid(x @ v.T + c))
    assert encoder.features == 3
    assert MLP((3,), "glu").decoder(2, (5,))(torch.zeros(1, 2)).shape == (1, 5)


def test_the_slope_of_leaky_relu():
    for network, slope in ((MLP((4,), "leaky_relu"), 0.01), (MLP((4,), "leaky_relu", 0.3), 0.3)):
        slopes = [
            m.negative_slope
            for part in pair(network, VECTOR)
            for m in part.modules()
            if isinstance(m, nn.LeakyReLU)
        ]
        assert slopes == [slope, slope]
    with pytest.raises(ValueError, match="that of activation=leaky_relu, got 0.3 with relu"):
        MLP(negative_slope=0.3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [MLP, Conv, ResNet, Grid, *OF_SERIES])
def test_every_activation_builds(kind, activation):
    network = kind(activation=activation)
    shape = suited(network, (1, 8, 8))
    assert network.decoder(2, shape)(latents(network, 1, shape, 2)).shape == (1, *shape)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((512, 0)), r"hidden must be a sequence of positive integers, got \(512, 0\)"),
        (
            lambda: MLP((True, 3)),
            r"hidden must be a sequence of positive integers, got \(True, 3\)",
        ),
        (lambda: MLP(512), "hidden must be a sequence of positive integers, got 512"),
        (lambda: MLP(activation="rleu"), "activation must be one of relu, .*glu, got 'rleu'"),
        (lambda: Conv(()), r"channels must be a non-empty sequence .*, got \(\)"),
        (lambda: Conv(features=-1), "features must be a positive integer, got -1"),
        (lambda: ResNet(blocks=0), "blocks must be a positive integer, got 0"),
        (lambda: ResNet((32, 6.5)), r"channels must be .*, got \(32, 6.5\)"),
        (lambda: Conv().encoder((28, 28)), r"\[C, H, W\], got \(28, 28\): other data than images"),
        (lambda: ResNet().decoder(2, (28,)), r"\[C, H, W\], got \(28,\): other data than images"),
        (lambda: Linear().encoder(()), r"shape must be positive integers, .*, got \(\)"),
        (lambda: Conv().decoder(2, (1, 0, 8)), r"\[C, H, W\], got \(1, 0, 8\)"),
        (lambda: MLP().decoder(0, (1, 8, 8)), "latent_size must be a positive integer, got 0"),
        (lambda: Grid(()), r"channels must be a non-empty sequence .*, got \(\)"),
        (lambda: Grid(blocks=0), "blocks must be a positive integer, got 0"),
        (lambda: Grid((4, 1)), r"norm=place needs 2 channels or more, got \(4, 1\): the one of"),
        (lambda: Grid(norm="batch"), "norm must be one of place, group, got 'batch'"),
        (lambda: Grid(padding="same"), "padding must be one of zeros, reflect, .*, got 'same'"),
        (lambda: Grid(activation="rleu"), "activation must be one of relu, .*, got 'rleu'"),
        (
            lambda: Grid((4,), padding="reflect").encoder((1, 9, 2)),
            "padding=reflect needs 2 x 2 places or more, got 5 x 1 of 2 pixels: use replicate",
        ),
        (lambda: Grid().encoder((28,)), r"\[C, H, W\], got \(28,\): other data than images"),
        (lambda: TemporalConv().encoder((3, 8, 8)), r"\[T, D\], got \(3, 8, 8\): other data"),
        (lambda: Transformer().decoder(2, (28,)), r"\[T, D\], got \(28,\): other data than"),
        (lambda: TemporalConv(kernel=4), "kernel must be odd, got 4: type 5"),
        (lambda: Transformer(width=0), "width must be a positive integer, got 0"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_norm_over_groups_leaves_something_of_a_single_place():
    encoder, _ = pair(Grid((8,), norm="group"), (1, 2, 2))
    nn.init.normal_(encoder[2][-1].weight)  # a residual block begins as the identity
    nn.init.zeros_(encoder[1].bias)
    x = torch.rand(5, 1, 2, 2)
    assert (encoder(x) - encoder[1](x).permute(0, 2, 3, 1)).std(0).max() > 1e-3
