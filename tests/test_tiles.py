"""Pictures in tiles: the same as the whole at once."""

import numpy as np
import pytest
import torch
from tiny import randomize

from vae_lab import VAE, likelihoods
from vae_lab.conditions import Attributes, InferredLabels, Labels
from vae_lab.latents import Bernoulli, Categorical, Gaussian
from vae_lab.networks import MLP, Grid
from vae_lab.tiles import Tiled, measured_reach

SMALL = (4, 6)  # channels: places of 4 x 4 pixels


def grid_vae(latent=None, likelihood=None, condition=None, **settings):
    network = Grid(SMALL, **settings)
    parts = network, latent or Gaussian(3), likelihood or likelihoods.Gaussian(0.3)
    return randomize(VAE((3, 16, 16), *parts, condition=condition), 0.3).eval()


def whole(vae, picture):
    x = torch.from_numpy(picture)[None]
    return vae.at(*picture.shape).reconstruct(x)[0].numpy()


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("size", [(67, 90), (64, 41), (5, 60)], ids=str)
def test_tiles_are_the_whole(padding, size):
    vae = grid_vae(padding=padding)
    if padding == "reflect" and 5 in size:  # to be mirrored, there have to be two places
        size = (6, 60)
    picture = np.random.default_rng(0).random((3, *size), np.float32)
    found = Tiled(vae, tile=22).reconstruct(picture)
    assert found.shape == picture.shape
    np.testing.assert_allclose(found, whole(vae, picture), atol=1e-5)


@pytest.mark.parametrize(
    ("condition", "y"),
    [(Labels(3), 1), (Labels(3), [1]), (InferredLabels(3), 2), (Attributes(2), [0.5, -1.0])],
    ids=str,
)
def test_tiles_of_a_model_that_was_given_its_label(condition, y):
    vae, picture = grid_vae(condition=condition), np.random.default_rng(0).random((3, 60, 41))
    given = vae.given(torch.tensor(y))
    picture = picture.astype(np.float32)
    found = Tiled(given, tile=20).reconstruct(picture)
    np.testing.assert_allclose(found, whole(given, picture), atol=1e-5)
    other = vae.given(0 * torch.tensor(y))
    assert np.abs(Tiled(other, tile=20).reconstruct(picture) - found).max() > 1e-3


@pytest.mark.parametrize("latent", [Gaussian(2), Categorical(2, 3), Bernoulli(2)], ids=str)
def test_z_is_one_number_for_each_variable(latent):
    vae, picture = grid_vae(latent), np.random.default_rng(0).random((3, 50, 39), np.float32)
    tiled = Tiled(vae, tile=16)
    z = tiled.encode(picture)
    other = vae.at(3, 50, 39)
    numbers = other.latent.numbers(other.latent.mode(other.encode(torch.from_numpy(picture)[None])))
    np.testing.assert_allclose(z, other.latent.at_places(numbers)[0].detach(), atol=1e-5)
    assert z.shape == (13, 10, 2) and tiled.decode(z).shape == (3, 52, 40)


def test_too_small_a_margin_would_be_seen():
    vae, picture = grid_vae(), np.random.default_rng(0).random((3, 60, 60), np.float32)
    tiled = Tiled(vae, tile=20)
    tiled._reach = tiled._reach._replace(encoder=tiled._reach.encoder - 1)
    assert np.abs(tiled.reconstruct(picture) - whole(vae, picture)).max() > 1e-4


@pytest.mark.parametrize(
    "channels, blocks", [((4,), 1), ((4, 6), 1), ((4, 6, 4), 2), ((4, 4, 4), 1)]
)
def test_the_reach_is_that_of_the_kernels(channels, blocks):
    """Summed by hand: in the encoder each halving looks at one pixel more on each side, and each
    block at two of the next scale; the decoder's convolutions at one each."""
    network, stages = Grid(channels, blocks=blocks), range(len(channels))
    vae = VAE((3, 16, 16), network, Gaussian(2), likelihoods.Gaussian())
    down = sum(2**s + 2 * blocks * 2 ** (s + 1) for s in stages)
    up = 2 * blocks * network.stride + sum((1 + 2 * blocks) * 2**s for s in stages[1:]) + 2
    expected = tuple(-(-pixels // network.stride) for pixels in (down, up))
    assert measured_reach(vae) == (*expected, False)


def test_bytes_in_files_come_and_go(tmp_path):
    vae = grid_vae(likelihood=likelihoods.DiscretizedLogistic())
    shape = (3, 70, 50)
    picture, out = (
        np.memmap(tmp_path / name, np.uint8, "w+", shape=shape) for name in ("picture", "out")
    )
    picture[:] = np.random.default_rng(0).integers(0, 256, shape)
    assert Tiled(vae, 16).reconstruct(picture, out) is out
    expected = 255 * whole(vae, picture[:].astype(np.float32) / 255)
    assert np.abs(out - expected).max() <= 0.51


def test_codes_fit_into_bytes():
    vae, picture = grid_vae(Categorical(1, 7)), np.random.default_rng(0).random((3, 40, 40))
    tiled = Tiled(vae, 16)
    z = tiled.encode(picture)
    stored = tiled.encode(picture, np.zeros(z.shape, np.uint8))
    assert z.max() > 1
    np.testing.assert_array_equal(stored, z)
    np.testing.assert_array_equal(tiled.decode(stored), tiled.decode(z))


def test_the_order_of_bytes_in_a_file_makes_no_difference():
    tiled, picture = Tiled(grid_vae(), 16), np.random.default_rng(0).random((3, 40, 40), np.float32)
    np.testing.assert_array_equal(tiled.encode(picture.astype(">f4")), tiled.encode(picture))


def test_parameters_and_random_numbers_are_left_alone():
    vae, state = grid_vae(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    Tiled(vae).reconstruct(np.zeros((3, 9, 9), np.float32))
    assert torch.equal(state, torch.get_rng_state()) and vae.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


PICTURE = np.zeros((3, 20, 20), np.float32)
WRONG = [
    (lambda: Tiled(grid_vae(norm="group")), "tiles need a network whose places .*: type vae.at"),
    (lambda: Tiled(grid_vae(attention=True)), r"norm='place', attention=False\), got Grid\("),
    (
        lambda: Tiled(VAE((3, 4, 4), MLP(), Gaussian(2), likelihoods.Bernoulli())),
        "MLP takes data of shape .* only: train with a fully convolutional network",
    ),
    (
        lambda: Tiled(grid_vae(condition=Labels(3))),
        r"^a picture in tiles needs its y, whole numbers, 0 to 2: type Tiled\(vae.given\(y\)\)$",
    ),
    (lambda: Tiled(grid_vae(condition=InferredLabels(3))), r"type Tiled\(vae.given\(y\)\)$"),
    (
        lambda: Tiled(grid_vae(condition=Labels(3)).given([1, 2])),
        r"y must be one, that of the picture, got \[2\]",
    ),
    (lambda: Tiled(grid_vae(), 0), "tile must be a positive integer, got 0"),
    (lambda: Tiled(grid_vae()).encode(PICTURE[0]), r"the shape \[3, H, W\], got \[20, 20\]"),
    (
        lambda: Tiled(grid_vae()).encode(PICTURE.transpose(1, 2, 0)),
        r"got \[20, 20, 3\]: type picture.transpose\(2, 0, 1\)",
    ),
    (
        lambda: Tiled(grid_vae()).encode(torch.from_numpy(PICTURE)),
        r"a numpy array, got Tensor: type picture.numpy\(\)",
    ),
    (
        lambda: Tiled(grid_vae()).decode(np.zeros((5, 5, 4))),
        r"z must have the shape \[h, w, 3\], got \[5, 5, 4\]",
    ),
    (lambda: Tiled(grid_vae()).encode(PICTURE + 3), "the batch has 3: divide by 255"),
    (
        lambda: Tiled(grid_vae()).reconstruct(PICTURE, PICTURE[:, 1:]),
        r"out must have the shape \[3, 20, 20\], got \[3, 19, 20\]",
    ),
    (
        lambda: Tiled(grid_vae()).decode(np.zeros((5, 5, 3)), PICTURE[:, 4:]),
        r"out must have the shape \[3, 20, 20\], got \[3, 16, 20\]",
    ),
    (lambda: Tiled(grid_vae()).decode(np.zeros((5, 5, 2))), r"shape \[h, w, 3\], got \[5, 5, 2\]"),
    (
        lambda: Tiled(grid_vae(Categorical(1, 7))).decode(np.full((2, 2, 1), 7)),
        "z must be from 0 to 6, got 7",
    ),
    (lambda: Tiled(grid_vae()).decode(np.full((2, 2, 3), np.nan)), "z must be .*, got nan"),
    (lambda: Tiled(grid_vae()).decode(np.zeros((5, 5))), r"z must have .* got \[5, 5\]"),
]


@pytest.mark.parametrize("call, message", WRONG)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
