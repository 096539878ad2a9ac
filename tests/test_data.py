import numpy as np
import pytest
import torch
from PIL import Image

from vae_lab.data import Augment, Prepare, TensorLoader
from vae_lab.data.augment import resized_crop
from vae_lab.seeding import derive_seed, seed_generators


def loader(num_images=23, batch_size=5, **settings):
    """Every image holds its own number in all pixels."""
    images = torch.arange(num_images, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    settings = {"seed": 1, "shuffle": True, **settings}
    return TensorLoader(images.contiguous(), torch.arange(num_images), batch_size, **settings)


def epoch(batches, number=0):
    batches.set_epoch(number)
    return list(batches)


def rows(batches):
    return torch.cat([batch.y for batch in batches])


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(one.x, other.x) and torch.equal(one.y, other.y) and one.size == other.size
        for one, other in zip(batches, others, strict=True)
    )


def grey(num_images=64, **settings):
    """Pixels of all 256 values, binarised with noise."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(num_images, 1, 1, 1)
    settings = {"binarize": "stochastic", "seed": 1, **settings}
    return TensorLoader(images, torch.arange(num_images), 10, **settings)


def test_an_epoch_holds_every_image_once():
    batches = epoch(loader())
    assert len(batches) == len(loader()) == 5
    assert [batch.size for batch in batches] == [5, 5, 5, 5, 3]
    assert rows(batches).sort().values.tolist() == list(range(23))
    assert torch.equal(torch.cat([batch.x[:, 0, 0, 0] for batch in batches]), rows(batches) / 255)


def photographs(num_images=23, batch_size=5, augment=None, **settings):
    """Noise, so that no two parts of two images are alike, 11 high and 8 wide."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, 3, 11, 8), dtype=torch.uint8, generator=noise)
    settings = {"seed": 1, "shuffle": True, **settings}
    augment = augment or Augment(flip=True, crop=0.6)
    return TensorLoader(images, torch.arange(num_images), batch_size, augment=augment, **settings)


@pytest.mark.parametrize("make", [loader, grey, photographs])
def test_batches_are_a_function_of_seed_and_epoch(make):
    assert same(epoch(make(), 3), epoch(make(), 3))
    assert not same(epoch(make(), 3), epoch(make(), 4))
    assert not same(epoch(make(), 3), epoch(make(seed=2), 3))


def test_without_shuffle_the_order_is_the_files():
    assert rows(epoch(loader(shuffle=False), 3)).tolist() == list(range(23))


@pytest.mark.parametrize("make", [loader, photographs])
@pytest.mark.parametrize("start", range(6))
def test_a_late_start_yields_the_tail(make, start):
    batches = make(binarize="stochastic")
    whole = epoch(batches, 2)
    batches.start_at(2, start)
    assert len(batches) == 5
    assert same(epoch(batches, 2), whole[start:])
    assert same(epoch(batches, 2), whole)  # only the next iteration starts late


def test_a_late_start_is_for_its_epoch_only():
    batches = loader()
    batches.start_at(2, 3)
    assert same(epoch(batches, 1), epoch(loader(), 1))


def test_epoch_and_start_may_be_set_after_iter():
    batches = loader()
    iterator = iter(batches)
    batches.start_at(2, 1)
    batches.set_epoch(2)
    assert same(list(iterator), epoch(loader(), 2)[1:])


@pytest.mark.parametrize("make", [loader, photographs])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_ranks_parts_join_to_the_batch_of_one_process(make, world_size):
    settings = {"binarize": "stochastic", "world_size": world_size}
    parts = [epoch(make(rank=rank, **settings)) for rank in range(world_size)]
    for whole, *ranks in zip(epoch(make(binarize="stochastic")), *parts, strict=True):
        assert torch.equal(torch.cat([part.x for part in ranks]), whole.x)
        assert torch.equal(torch.cat([part.y for part in ranks]), whole.y)
        assert {part.size for part in ranks} == {whole.size}
    if world_size == 7:  # more ranks than images in a batch
        assert len(parts[0][0].x) == 0


class Jittered(Prepare):
    """Floats of a series [T, D], with noise of their own."""

    def __call__(self, stored, draw):
        return stored + draw(lambda size, generator: torch.rand(size, 7, 3, generator=generator))


def series(prepare=None, **settings):
    stored = torch.arange(23.0).view(-1, 1, 1).expand(-1, 7, 3).contiguous()
    settings = {"seed": 1, "shuffle": True, "prepare": prepare or Jittered(), **settings}
    return TensorLoader(stored, torch.arange(23), 5, **settings)


def test_what_is_no_image_is_loaded_as_images_are():
    batches = epoch(series(Prepare()))
    assert batches[0].x.shape == (5, 7, 3) and batches[0].x.dtype == torch.float32
    assert torch.equal(torch.cat([batch.x[:, 0, 0] for batch in batches]), rows(batches).float())
    assert torch.equal(rows(batches), rows(epoch(loader())))  # the same order
    assert same(epoch(series(), 2), epoch(series(), 2))
    assert not torch.equal(epoch(series(), 2)[0].x % 1, epoch(series(), 3)[0].x % 1)


def test_the_noise_of_what_is_no_image_is_the_batchs_too():
    parts = [epoch(series(rank=rank, world_size=2)) for rank in range(2)]
    for whole, *ranks in zip(epoch(series()), *parts, strict=True):
        assert torch.equal(torch.cat([part.x for part in ranks]), whole.x)


def test_threshold_is_above_one_half():
    (batch, *_) = grey(binarize="threshold")
    assert torch.equal(batch.x[0].flatten(), (torch.arange(256) > 127.5).float())


def test_stochastic_binarisation_has_the_mean_of_the_image():
    x = torch.cat([batch.x for number in range(20) for batch in epoch(grey(), number)])
    p = torch.arange(256).view(1, 16, 16) / 255
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(x.mean(0)[p == 0], torch.zeros(1))
    assert torch.equal(x.mean(0)[p == 1], torch.ones(1))
    standard_error = (p * (1 - p) / len(x)).sqrt()
    assert ((x.mean(0) - p).abs() <= 4.5 * standard_error).all()


def test_pixels_and_batches_have_independent_noise():
    first, second, *_ = grey(shuffle=False)
    middle = slice(96, 160)  # p near one half
    a, b = first.x.flatten(1)[:, middle], second.x.flatten(1)[:, middle]
    assert 0.3 < (a != b).float().mean() < 0.7
    assert 0.3 < (a[:, 1:] != a[:, :-1]).float().mean() < 0.7


def test_evaluation_data_is_the_same_in_every_epoch_and_not_that_of_another_stage():
    assert same(epoch(grey(stage="val"), 0), epoch(grey(stage="val"), 5))
    assert not same(epoch(grey(stage="val")), epoch(grey(stage="test")))


@pytest.mark.parametrize("make", [loader, photographs])
def test_torchs_generator_is_neither_read_nor_moved(make):
    torch.manual_seed(0)
    first = epoch(make(binarize="stochastic"))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert same(epoch(make(binarize="stochastic")), first)
    assert torch.equal(torch.get_rng_state(), state)


def by_label(batches):
    """The images of an epoch in the order of the data set, [N, C, H, W]."""
    x = torch.cat([batch.x for batch in batches])
    return x[rows(batches).argsort()]


def test_a_flip_mirrors_half_of_the_images_and_others_in_each_epoch():
    plain = by_label(epoch(photographs(200, augment=Prepare())))
    mirrored = []
    for number in range(2):
        x = by_label(epoch(photographs(200, augment=Augment(flip=True)), number))
        flipped = (x == plain.flip(-1)).flatten(1).all(1)
        assert torch.equal(x[~flipped], plain[~flipped])
        assert 70 < flipped.sum() < 130  # 100 +- 7
        mirrored.append(flipped)
    assert not torch.equal(*mirrored)


def test_a_crop_is_the_part_that_pillow_cuts_out_and_scales():
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 3, 30, 20), dtype=torch.uint8, generator=noise)
    side, top, left = torch.rand(3, 20, generator=noise)
    side = 0.3 + 0.7 * side
    top, left = (1 - side) * top, (1 - side) * left
    left[0], top[1], side[2], top[2], left[2] = 0, 1 - side[1], 1, 0, 0
    found = resized_crop(images, side, top, left)
    for image, crop, s, y, x in zip(
        images, found, side.tolist(), top.tolist(), left.tolist(), strict=True
    ):
        box = (20 * x, 30 * y, min(20 * (x + s), 20), min(30 * (y + s), 30))
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        scaled = picture.resize((20, 30), Image.Resampling.BILINEAR, box=box)
        expected = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
        assert (crop.int() - expected.int()).abs().max() <= 1  # Pillow rounds twice
    assert torch.equal(found[2], images[2])


def test_crops_see_all_places_and_sizes_and_no_others():
    """Of images whose value is the place, from left to right or from top to bottom."""
    ramp = torch.arange(0, 256, dtype=torch.uint8).expand(400, 1, 2, 256)
    (left, right), (top, bottom) = (
        batch.x.flatten(1)[:, [0, -1]].T
        for images in (ramp, ramp.mT)
        for batch in TensorLoader(
            images.contiguous(), torch.arange(400), 400, augment=Augment(crop=0.6)
        )
    )
    for first, last in ((top, bottom), (left, right)):
        side = last - first
        assert 0.595 < side.min() < 0.62 and 0.98 < side.max() <= 1  # half a pixel at each end
        assert first.min() < 0.01 and last.max() > 0.99
        assert (first + last - 1).mean().abs() < 0.03
    torch.testing.assert_close(bottom - top, right - left, atol=3 / 255, rtol=0)  # undistorted
    assert not torch.allclose(top, left, atol=0.1)


@pytest.mark.parametrize("binarize", ["none", "threshold", "stochastic"])
def test_what_is_augmented_has_the_values_of_what_is_not(binarize):
    values = photographs(binarize=binarize).__iter__().__next__().x.mul(255)
    allowed = torch.arange(256) if binarize == "none" else torch.tensor([0, 255])
    assert torch.isin(values.round(), allowed).all()
    torch.testing.assert_close(values, values.round(), atol=1e-4, rtol=0)


class Twice(Prepare):
    """Two noises in the place of the data."""

    def __call__(self, stored, draw):
        def noise(size, generator):
            return torch.rand(size, generator=generator)

        return torch.stack([draw(noise, name) for name in ("flip", "crop", "crop")], 1)


def test_noises_of_other_names_are_independent():
    flip, crop, again = series(Twice(), shuffle=False).__iter__().__next__().x.unbind(1)
    assert torch.equal(crop, again) and not torch.isclose(flip, crop).any()


def test_resuming_with_another_batch_size_is_refused():
    state = loader(batch_size=5).state_dict()
    loader(batch_size=5).load_state_dict(state)
    with pytest.raises(ValueError, match="'batch_size': 5.*'batch_size': 6"):
        loader(batch_size=6).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"binarize": "yes"}, "binarize must be one of none, threshold, stochastic, got 'yes'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        loader(**settings)


def test_images_must_be_bytes():
    with pytest.raises(ValueError, match=r"uint8 with 4 axes .* got torch.float32 of shape \(3,"):
        TensorLoader(torch.zeros(3, 1, 4, 4), torch.zeros(3), 2)


def test_seeds_have_63_bits_and_depend_on_every_part():
    parts = [(0,), (1,), (0, 1), (1, 0), (0, "train", 1), (0, "val", 1), (0, "train", 11)]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (
        derive_seed(0, "train", 3, 17, 0) == 8706910234634553029
    )  # fixed for ever: checkpoints rely on it


def test_seed_generators_equals_manual_seed():
    seed_generators(derive_seed(5))
    drawn = torch.rand(3)
    torch.manual_seed(derive_seed(5))
    assert torch.equal(torch.rand(3), drawn)
