import pytest
import torch
from PIL import Image
from stand_ins import TinyVAE

from vae_lab import pictures


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
