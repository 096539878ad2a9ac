import pytest
import torch
from PIL import Image
from stand_ins import TinyVAE
from tiny import binary_images, discrete_vae, grid_of_colours

from vae_lab import VAE, pictures
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Gaussian as GaussianValues
from vae_lab.networks import MLP


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (20, 100), (96, 64)])
def test_grids_are_images_of_large_enough_cells(channels, size):
    vae, x = TinyVAE((channels, *size)), torch.rand(3, channels, *size)
    shapes = {
        (1, 3): pictures.reconstructions(vae, x).shape,
        (2, 4): pictures.samples(vae, 2, 4).shape,
        (3, 6): pictures.interpolations(vae, x, x, 6).shape,
    }
    for (rows, columns), (depth, height, width) in shapes.items():
        assert depth == 3
        assert height >= rows * 64 and width >= columns * 64


def test_enlarging_keeps_the_pixels():
    x = torch.rand(2, 1, 8, 8)
    grid = pictures.interpolations(TinyVAE(), x, x, steps=1)
    cell = grid[:, pictures.GAP :, pictures.GAP :][:, :64, :64]
    assert torch.equal(cell[:, ::8, ::8], x[0].expand(3, -1, -1))
    assert torch.equal(cell, cell[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2))


def test_originals_are_above_a_band_and_reconstructions_below():
    vae, x = TinyVAE().eval(), torch.zeros(2, 1, 8, 8)  # reconstructs as 0.25
    grid = pictures.reconstructions(vae, x)
    centre = pictures.GAP + 32
    assert grid[0, centre, centre] == 0 and grid[0, -centre, centre] == 0.25
    middle = grid.shape[1] // 2
    assert (grid[:, middle - 4 : middle + 4] == 1).all()


def test_interpolations_go_from_left_to_right_in_each_row():
    x0, x1 = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    grid = pictures.interpolations(TinyVAE(), x0, x1, steps=3)
    side = 64 + pictures.GAP
    centres = grid[0, 32 + pictures.GAP :: side, 32 + pictures.GAP :: side]
    assert torch.equal(centres, torch.tensor([[0, 0.5, 1], [0, 0.5, 1]]))


def test_values_in_units_of_their_own_are_seen():
    """Around their mean, which is grey; [0, 1] would have all of them white."""
    x = 300 + 60 * torch.randn(40, 1, 8, 8)
    vae = VAE((1, 8, 8), MLP((8,)), Gaussian(2), GaussianValues(standardize=True)).eval()
    vae.initialize(x)
    z = vae.latent.mode(vae.encode(x[:1]))[0]
    seen = {
        "reconstructions": pictures.reconstructions(vae, x[:4]),
        "samples": pictures.samples(vae, 2, 2),
        "interpolations": pictures.interpolations(vae, x[:2], x[2:4]),
        "traversals": pictures.traversals(vae, z, [0, 1]),
    }
    for name, images in seen.items():
        assert images.min() >= 0 and images.max() <= 1 and len(images.unique()) > 20, name


def test_grids_carry_no_gradient():
    vae, x = TinyVAE(), torch.rand(2, 1, 8, 8)
    grids = (
        pictures.reconstructions(vae, x),
        pictures.samples(vae),
        pictures.interpolations(vae, x, x),
    )
    assert not any(grid.requires_grad for grid in grids)


def test_saved_png_has_the_grids_values(tmp_path):
    path = tmp_path / "new" / "grid.png"
    pictures.save(torch.tensor([0.0, 0.5, 1.0, 7.0]).expand(3, 2, 4), path)
    image = Image.open(path)
    assert image.size == (4, 2)
    assert [image.getpixel((column, 0)) for column in range(4)] == [
        (v,) * 3 for v in (0, 128, 255, 255)
    ]
    assert list(path.parent.iterdir()) == [path]


# What single latent variables do.


def gaussian(latents=3):
    return discrete_vae(Gaussian(latents))  # which makes any VAE with all weights drawn anew


@pytest.mark.parametrize(
    "latent, values",
    [(Gaussian(3), 7), (Categorical(3, 5), 5), (Bernoulli(3), 2), (Poisson(3), 7)],
    ids=lambda latent: type(latent).__name__,
)
def test_traversals_set_one_variable_at_a_time(latent, values):
    vae = discrete_vae(latent)
    z = vae.latent.mode(vae.encode(binary_images(1)))[0]
    images = pictures.traversals(vae, z, [2, 0])
    assert images.shape == (2, values, 1, 2, 2)
    moved = z.clone()
    moved[0] = vae.latent.from_numbers(vae.latent.values())[1, 0]
    expected = vae.likelihood.mean(vae.decode(moved[None]))[0]
    assert torch.allclose(images[1, 1], expected)
    assert not torch.allclose(images[0], images[1])


def test_values_of_a_gaussian_are_the_priors():
    latent = Gaussian(2, learn_prior=True)
    latent.prior_parameters.data = torch.tensor([1.0, -1.0, 0.0, 2.0]).log1p().nan_to_num(0.5)
    prior, values = latent.prior(), latent.values(7)
    assert torch.allclose(values[3], prior.mean)
    assert torch.allclose(values[-1], prior.mean + 3 * prior.stddev)


def test_a_dead_unit_changes_no_picture():
    vae = gaussian()
    with torch.no_grad():
        vae.decoder[0].weight[:, 1] = 0  # the decoder does not look at it
    z = torch.randn(3, dtype=torch.float64)
    images = pictures.traversals(vae, z, [0, 1])
    assert torch.equal(images[1], images[1, :1].expand_as(images[1]))
    assert (images[0, 0] - images[0, -1]).abs().max() > 0.01


def test_active_units_are_by_kl():
    kl = torch.tensor([0.5, 0.001, 2.0, 1.0])
    assert pictures.active_units(kl, most=12) == [2, 3, 0]
    assert pictures.active_units(kl, most=2) == [2, 3]
    assert pictures.active_units(kl / 1000, most=12) == [2]  # something has to be shown


@pytest.mark.parametrize("latent", [Categorical(2, 4), Bernoulli(2)], ids=["codes", "bits"])
def test_code_images_are_differences_to_the_mean_image(latent):
    vae = discrete_vae(latent)
    z = vae.encode(binary_images(5)).sample()
    added = pictures.code_images(vae, z, [1])[0]  # [V, C, H, W]
    everything = vae.likelihood.mean(vae.decode(z)).mean(0)
    for value, image in zip(vae.latent.from_numbers(vae.latent.values()), added, strict=True):
        z_set = torch.stack([z[:, 0], value[1].expand_as(z[:, 1])], 1)
        expected = vae.likelihood.mean(vae.decode(z_set)).mean(0) - everything
        assert torch.allclose(image, expected)


def test_a_grid_without_gaps_is_the_images():
    x = torch.rand(4, 1, 64, 64)
    image = pictures.grid(x, columns=2, gap=None)
    assert torch.equal(image[0, 64:, :64], x[2, 0])


@pytest.mark.parametrize(("width", "count"), [(8, 8), (96, 8), (256, 6), (1000, 2)])
def test_a_row_of_large_images_holds_fewer(width, count):
    vae = TinyVAE((1, 8, width))
    assert pictures.in_a_row(vae, 8) == count and pictures.in_a_row(vae, 1) == 1


# Of latents on a grid.


@pytest.mark.parametrize(
    "latent", [Gaussian(2), Categorical(2, 5), Bernoulli(2), Poisson(2)], ids=lambda x: x.kind
)
def test_variables_are_set_together(latent):
    vae = grid_of_colours(latent)
    z = vae.latent.mode(vae.encode(torch.rand(1, *vae.shape)))[0]
    every = vae.latent.at_places(torch.arange(vae.latent.num_variables))
    images = pictures.traversals(vae, z, [every[..., 1].flatten(), 3])
    values = vae.latent.values()
    assert images.shape == (2, len(values), *vae.shape)
    numbers = vae.latent.at_places(vae.latent.numbers(z)).clone()
    numbers[..., 1] = vae.latent.at_places(values[1])[..., 1]
    expected = vae.likelihood.mean(vae.decode(vae.latent.from_numbers(numbers.flatten())[None]))
    assert torch.allclose(images[0, 1], expected[0], atol=1e-6)
    assert not torch.allclose(images[0], images[1], atol=1e-3)


def test_what_is_around_a_place():
    images = torch.arange(12 * 18).reshape(1, 12, 18)
    assert torch.equal(pictures.around(images, (1, 1), 4, reach=0), images[:, 4:8, 4:8])
    assert torch.equal(pictures.around(images, (0, 3), 4, reach=1), images[:, :8, 8:])


def test_a_patch_is_what_a_code_looks_like():
    """With all places around that have it as well: the pictures' border does not look so."""
    vae = grid_of_colours(Categorical(1, 5), (3, 12, 12), padding="zeros")
    z = vae.latent.from_numbers(torch.full((9,), 2.0))[None]
    image = vae.likelihood.mean(vae.decode(z))[0]
    patches = pictures.code_patches(vae)
    assert patches.shape == (5, 3, 4, 4)
    assert torch.allclose(patches[2], image[:, 4:8, 4:8], atol=1e-5)
    assert not torch.allclose(patches[2], image[:, :4, 4:8], atol=1e-3)
    assert not torch.allclose(patches[1], patches[2], atol=1e-3)
