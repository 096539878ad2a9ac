"""Sprites: the pictures are what their factors say, and none is there twice."""

import pytest
import torch
from test_configs import SMALLER, TINY, config, names, train_two_steps

from datamodules.base import ImageDataModule
from datamodules.sprites import SCALES, SHAPES, Sprites


def everything(sprites):
    """All images, in the order of their numbers."""
    return sprites._draw(torch.arange(torch.tensor(sprites.factor_sizes).prod()))


def drawn(**settings):
    """Every image in [0, 1], indexed by its factors, [shape, scale, rotation, x, y, H, W]."""
    sprites = Sprites(**{"image_size": 32, "rotations": 4, "positions": 4, **settings})
    return everything(sprites).view(*sprites.factor_sizes, *sprites.shape[1:]).double() / 255


@pytest.fixture(scope="module")
def images():
    return drawn()


def middle(images):
    """The centre of mass of images [*, H, W]: pixels to the right and down, each [*]."""
    along = torch.arange(images.shape[-1], dtype=torch.float64)
    mass = images.sum((-1, -2))
    return (images.sum(-2) * along).sum(-1) / mass, (images.sum(-1) * along).sum(-1) / mass


def test_a_label_is_the_number_of_a_combination():
    sprites = Sprites()
    factors = sprites.factors(torch.arange(36864))
    assert factors.dtype == torch.int64 and factors.shape == (36864, 5)
    assert factors.max(0).values.tolist() == [2, 5, 7, 15, 15]
    assert len(factors.unique(dim=0)) == 36864
    assert len(sprites.factor_names) == 5 and ImageDataModule.factor_names == ()


def test_x_moves_to_the_right_and_y_down(images):
    x, y = middle(images)
    step = 32 // 2 // 4
    torch.testing.assert_close(x.diff(dim=3), torch.full_like(x.diff(dim=3), step))
    torch.testing.assert_close(y.diff(dim=4), torch.full_like(y.diff(dim=4), step))
    assert x.diff(dim=4).abs().max() < 1e-9 and y.diff(dim=3).abs().max() < 1e-9
    # squares and ellipses, on average over the places, are in the middle
    torch.testing.assert_close(x[:2].mean((3, 4)), torch.full((2, SCALES, 4), 15.5).double())


def test_the_whole_sprite_is_in_every_image(images):
    mass = images.sum((-1, -2))
    torch.testing.assert_close(mass, mass[..., :1, :1].expand_as(mass))
    assert (mass > 0).all()


def test_areas_grow_with_the_square_of_the_scale():
    area = drawn(image_size=64, positions=1).sum((-1, -2)).mean(2).flatten(1)  # [shape, scale]
    expected = torch.linspace(0.5, 1, SCALES).double().square() * 16**2
    unit = torch.tensor([1.4**2, torch.pi / 2, 3.662 / 1.3**2]).double()  # the heart: by quadrature
    torch.testing.assert_close(area, unit[:, None] * expected, rtol=0.02, atol=0)


def test_the_rotation_is_the_angle_of_the_ellipse():
    ellipse = drawn(image_size=64, positions=1)[SHAPES.index("ellipse"), -1, :, 0, 0]
    x, y = middle(ellipse)
    along = torch.arange(64).double()
    dx, dy = along - x[:, None], along - y[:, None]
    moments = [
        torch.einsum("nyx,ny,nx->n", ellipse, *powers)
        for powers in ((dy * 0 + 1, dx**2), (dy**2, dx * 0 + 1), (dy, dx))
    ]
    angle = 0.5 * torch.atan2(2 * moments[2], moments[0] - moments[1])
    torch.testing.assert_close(
        angle.rad2deg(), torch.tensor([0, 22.5, 45, 67.5]).double(), atol=0.5, rtol=0
    )


@pytest.mark.parametrize("settings", [{"image_size": 16, "positions": 8}, {"positions": 2}])
def test_no_two_images_are_equal(settings):
    pixels = everything(Sprites(**settings)).flatten(1)
    weights = torch.randint(2**31, (pixels.shape[1],))  # equal sums of 2^39 would be a wonder
    sums = torch.cat([(part * weights).sum(1) for part in pixels.split(1024)])
    assert len(sums.unique()) == len(pixels)


def test_the_splits_share_nothing_and_cover_all(images):
    sprites = Sprites(image_size=32, rotations=4, positions=4)
    sprites.setup()
    splits = []
    for name in ("train", "val", "test"):
        for x, y, _ in getattr(sprites, f"{name}_dataloader")():
            whole = images[tuple(sprites.factors(y).T)]
            assert torch.equal(x[:, 0], whole.float())
            splits.append((name, y))
    labels = {n: torch.cat([y for m, y in splits if m == n]) for n in ("train", "val", "test")}
    assert [len(y) for y in labels.values()] == [933, 104, 115]
    assert torch.cat([*labels.values()]).sort().values.tolist() == [*range(1152)]
    for y in labels.values():  # the first of them are of all kinds
        assert len(sprites.factors(y[:60])[:, :2].unique(dim=0)) > 15


def test_the_test_images_are_always_the_same():
    first, other = (
        Sprites(image_size=16, rotations=1, positions=4, seed=s, split_seed=s).load()
        for s in (0, 1)
    )
    assert torch.equal(first.test, other.test) and torch.equal(first.train, other.train)
    count = Sprites(image_size=16, rotations=1, positions=4, test_size=7).load()
    assert len(count.test) == 7 and len(count.train) == 281


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 15}, "image_size must be at least 16, got 15"),
        ({"rotations": 0}, "rotations must be at least 1, got 0"),
        ({"positions": 0}, "positions must be from 1 to image_size / 2 = 32, got 0"),
        ({"image_size": 16, "positions": 9}, "positions must be from 1 .* = 8, got 9"),
        ({"test_size": 1.5}, "test_size must be a count or a fraction"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Sprites(**settings)


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("model", sorted({*names("model")} - {"semi_supervised_vae"}))
def test_every_model_trains_on_it(model, network):
    small = ["data.image_size=16", "data.rotations=1", "data.positions=4"]
    size = "network.hidden=[8]" if network == "mlp" else "network.channels=[4,8]"
    lines = [*TINY, f"model={model}", *SMALLER.get(model, []), f"network={network}", size]
    train_two_steps(config(*lines, "data=sprites", *small))
