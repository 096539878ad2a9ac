"""What the explorer's page shows, without the page."""

import io
import itertools
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SHAPE, grid_of_colours, randomize

from vae_lab import VAE
from vae_lab.conditions import Labels
from vae_lab.data import image_files
from vae_lab.data.image_files import read_upload
from vae_lab.explorer.edits import STEPS, Explorer, png
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Bernoulli as BernoulliLikelihood
from vae_lab.likelihoods import Gaussian as GaussianValues
from vae_lab.networks import MLP

LATENTS = {
    "numbers": lambda: Gaussian(3, learn_prior=True),
    "codes": lambda: Categorical(3, 4, learn_prior=True),
    "bits": lambda: Bernoulli(3, learn_prior=True),
    "counts": lambda: Poisson(3, learn_prior=True),
}
ANY = pytest.mark.parametrize("kind", LATENTS)
SIZE = (1, 4, 6)


def explorer(kind, scale=0.7):
    vae = randomize(VAE(SHAPE, MLP((8,), "tanh"), LATENTS[kind](), BernoulliLikelihood()), scale)
    return Explorer(vae.eval(), torch.rand(20, *SHAPE).round())


@ANY
def test_a_picture_is_encoded_edited_and_decoded(kind):
    explored = explorer(kind)
    x = explored.images[0]
    z = explored.encode(x)
    torch.testing.assert_close(explored.decode(z), explored.vae.reconstruct(x[None])[0])
    value = -0.5 if kind == "numbers" else 1 - min(explored.values(z)[2], 1)
    edited = explored.edited(z, 2, value)
    assert explored.values(edited) == [*explored.values(z)[:2], value]
    assert edited.shape == z.shape and edited.dtype == z.dtype
    assert (explored.decode(edited) - explored.decode(z)).abs().max() > 1e-4
    torch.testing.assert_close(explored.encode(x), z)  # which was not changed with it


@pytest.mark.parametrize(
    ("kind", "value"),
    [*itertools.product(["codes", "bits", "counts"], [-1, 0.5]), ("codes", 1000), ("bits", 1000)],
)
def test_values_that_a_discrete_variable_does_not_have(kind, value):
    explored = explorer(kind)
    with pytest.raises(ValueError, match=f"z1 cannot have the value {value}"):
        explored.edited(explored.encode(explored.images[0]), 1, value)


def test_what_is_no_latent_variable_and_no_number():
    explored = explorer("numbers")
    z = explored.encode(explored.images[0])
    with pytest.raises(ValueError, match="latent must be in 0 to 2, got 3"):
        explored.edited(z, 3, 0.0)
    with pytest.raises(ValueError, match="z0 cannot have the value nan"):
        explored.edited(z, 0, float("nan"))


@ANY
def test_latents_by_their_kl(kind):
    explored = explorer(kind)
    kl = explored.vae.elbo(explored.images).kl.mean(0)
    torch.testing.assert_close(explored.use.each, kl)
    assert kl[explored.order].tolist() == sorted(kl.tolist(), reverse=True)


@ANY
def test_the_test_images_and_the_prior_lie_within_the_range(kind):
    explored = explorer(kind, scale=3.0)
    values = torch.tensor([explored.values(explored.encode(x)) for x in explored.images])
    low, high = explored.low - 1e-4, explored.high + 1e-4  # one by one is rounded otherwise
    assert (values >= low).all() and (values <= high).all()
    if kind == "numbers":
        prior = explored.latent.prior()
        assert (explored.high >= prior.mean + 3 * prior.stddev).all()


def on_a_grid(kind):
    vae = grid_of_colours(LATENTS[kind]())
    return Explorer(vae, torch.rand(20, *vae.shape))


@ANY
def test_a_place_is_painted(kind):
    explored = on_a_grid(kind)
    assert explored.grid == (3, 5) and explored.cells_across == (3, 4.5)
    assert explored.variables((1, 2)) == [21, 22, 23]
    z = explored.encode(explored.images[0])
    held = [-0.5, 0.25, 1.5] if kind == "numbers" else [1, 0, 1]
    painted = explored.painted(z, (1, 2), held)
    before, after = explored.values(z), explored.values(painted)
    assert after == [*before[:21], *held, *before[24:]]
    assert painted.shape == z.shape and painted.dtype == z.dtype
    changed = (explored.decode(painted) - explored.decode(z)).abs().amax(0)  # [12, 18]
    assert changed[4:8, 8:12].max() > 1e-4
    with pytest.raises(ValueError, match="z22 cannot have the value nan"):
        explored.painted(z, (1, 2), [0, float("nan"), 0])


@ANY
def test_what_one_place_can_be_each_can(kind):
    """So that what is held at one place can be painted over any."""
    explored = on_a_grid(kind)
    values = torch.tensor([explored.values(explored.encode(x)) for x in explored.images])
    low, high = (explored.latent.at_places(end) for end in (explored.low, explored.high))
    assert (low == low[0, 0]).all() and (high == high[0, 0]).all()
    places = explored.latent.at_places(values).flatten(0, 2)
    assert (places >= low[0, 0] - 1e-4).all() and (places <= high[0, 0] + 1e-4).all()


def test_codes_have_patches_where_a_place_has_a_single_one():
    vae = grid_of_colours(Categorical(1, 4))
    assert len(Explorer(vae, torch.rand(2, *vae.shape)).code_patches()) == 4
    for kind in LATENTS:
        assert len(on_a_grid(kind).code_patches()) == 0


def test_any_count_can_be_painted():
    """Also one that no test image has: a draw of the prior, or an upload, may have it."""
    explored = on_a_grid("counts")
    most = int(explored.high.max()) + 5
    painted = explored.painted(explored.encode(explored.images[0]), (1, 2), [most, 0, 1])
    assert most in explored.values(painted)


@ANY
def test_paths_lead_from_one_picture_to_the_other(kind):
    explored = explorer(kind)
    z0, z1 = (explored.encode(x) for x in explored.images[:2])
    path = explored.path(z0, z1)
    assert len(path) == STEPS + 1
    torch.testing.assert_close(path[0], z0)
    torch.testing.assert_close(path[-1], z1)
    assert explored.decode(path[STEPS // 2]).shape == SHAPE


@ANY
def test_samples_at_temperature_one_are_the_priors(kind):
    explored = explorer(kind, scale=0.5)
    z, prior = explored.samples(20_000), explored.latent.prior()
    error = 5 * prior.variance.sqrt() / len(z) ** 0.5
    assert (z.std(0) - prior.variance.sqrt()).abs().max() < 0.05
    if kind == "counts":
        error = error + 0.05  # no counts above those on offer
    assert ((z.mean(0) - prior.mean).abs() <= error).all()
    torch.testing.assert_close(z, explored.samples(20_000))


def log_prior(latent):
    """log p of every value that is offered, [L, K]."""
    _, high = latent.range()
    return latent.usage(latent.prior(), int(high.max()) + 1).log()


@pytest.mark.parametrize("kind", ["codes", "bits", "counts"])
def test_a_low_temperature_sharpens_and_a_high_one_flattens(kind):
    explored = explorer(kind)
    log_p = log_prior(explored.latent)
    values = torch.tensor([explored.values(z) for z in explored.samples(300, 1e-3)]).long()
    assert (values == log_p.argmax(-1)).all()
    values = torch.tensor([explored.values(z) for z in explored.samples(3000, 1e3)]).long()
    share = torch.stack([(values == k).float().mean(0) for k in range(log_p.shape[1])])
    torch.testing.assert_close(share, torch.full_like(share, 1 / len(share)), atol=0.05, rtol=0)


def test_a_gaussians_temperature_scales_its_standard_deviation():
    explored = explorer("numbers")
    mean = explored.latent.prior().mean
    one, half = (explored.samples(8, t, seed=3) for t in (1.0, 0.5))
    torch.testing.assert_close(half - mean, (one - mean) / 2)
    assert not torch.equal(one, explored.samples(8, 1.0, seed=4))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        explored.samples(1, 0)


def test_a_uniform_prior_is_known_for_one():
    def uniform(latent):
        vae = VAE(SHAPE, MLP((8,)), latent, BernoulliLikelihood()).eval()
        return Explorer(vae, torch.zeros(1, *SHAPE)).uniform

    assert uniform(Categorical(3, 4)) and uniform(Bernoulli(3))
    assert not uniform(Gaussian(3)) and not uniform(Poisson(3))
    assert not explorer("codes").uniform


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_png_has_the_images_pixels(channels):
    image = torch.rand(channels, 5, 7)
    array = np.asarray(Image.open(io.BytesIO(png(image))), dtype=np.float32)
    shown = image.permute(1, 2, 0).squeeze(-1) if channels != 2 else image.mean(0)
    np.testing.assert_allclose(array, 255 * shown, atol=0.51)


def file(mode="L", size=(6, 4), kind="PNG", **settings):
    """A picture that is white in its left half."""
    array = np.zeros((size[1], size[0]), dtype=np.uint8)
    array[:, : size[0] // 2] = 255
    picture = Image.fromarray(array)
    if mode == "I;16":
        picture = Image.fromarray(array.astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(array.astype(np.float32))
    else:
        picture = picture.convert(mode)
    target = io.BytesIO()
    picture.save(target, kind, **settings)
    return target.getvalue()


PREVIEW = Image.new("RGB", (6, 4))
FILES = {
    "the model's size": file(),
    "large": file(size=(60, 40)),
    "tall": file(size=(60, 400)),
    "one pixel high": file(size=(60, 1)),
    "colour": file("RGB"),
    "transparent": file("RGBA"),
    "palette": file("P"),
    "black and white": file("1"),
    "16 bits": file("I;16", size=(60, 40)),
    "CMYK": file("CMYK", kind="JPEG", size=(60, 40)),
    "GIF": file("P", kind="GIF"),
    "BMP": file(kind="BMP"),
    "TIFF": file(kind="TIFF"),
    "WebP": file("RGB", kind="WEBP"),
    "a camera's": file("RGB", kind="MPO", size=(60, 40), save_all=True, append_images=[PREVIEW]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_uploads_take_the_models_shape(name, channels):
    image = read_upload(FILES[name], (channels, *SIZE[1:]))
    assert image.dtype == torch.uint8 and image.shape == (channels, *SIZE[1:])
    assert image[..., :2].min() > 200 and image[..., -2:].max() < 55


def test_sixteen_bits_keep_their_grey():
    target = io.BytesIO()
    Image.fromarray(np.full((4, 6), 100 * 256 + 7, dtype=np.uint16)).save(target, "PNG")
    assert (read_upload(target.getvalue(), SIZE) == 100).all()


def test_a_decoder_that_fails_in_a_way_of_its_own(monkeypatch):
    def convert(*_):
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(ValueError, match="damaged and cannot be read .unpack requires"):
        read_upload(FILES["large"], SIZE)


def bomb(side=30_000):
    """A PNG of black pixels: a few bytes say how many."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = [head, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"]
    chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


FRAMES = [Image.new("L", (6, 4), colour) for colour in (0, 255)]
MOVING = {"save_all": True, "append_images": FRAMES}
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"no picture", "no picture of a known format: PNG, JPEG"),
    "a program's": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture of a known"),
    "cut off": (file("RGB", (60, 40), "JPEG")[:-200], "damaged and cannot be read"),
    "cut off early": (file(size=(600, 400))[:60], "damaged and cannot be read"),
    "moving GIF": (file("P", kind="GIF", **MOVING), "it is animated"),
    "moving PNG": (file(kind="PNG", **MOVING), "it is animated"),
    "pages": (file(kind="TIFF", **MOVING), "several pages"),
    "floats": (file("F", kind="TIFF"), "it holds floats, and .* save it with 8 or 16"),
    "bomb": (bomb(), "more than 89 million pixels"),
    "small bomb": (bomb(12_000), "more than 89 million pixels"),
    "large": (b"\0" * (image_files.MAX_BYTES + 2**20), "the file has 21 MB, at most 20 are read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_say_what_is_wrong(name):
    data, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        read_upload(data, SIZE)
    assert "\n" not in str(caught.value)


def test_a_model_of_other_channels():
    with pytest.raises(ValueError, match="5 channels: no picture file has those"):
        read_upload(FILES["GIF"], (5, 4, 4))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damaged_files_are_read_or_refused(kind):
    data, random = bytearray(file("RGB", (30, 20), kind)), np.random.default_rng(0)
    for _ in range(60):
        damaged = data.copy()
        for place in random.integers(len(data), size=random.integers(1, 8)):
            damaged[place] = random.integers(256)
        try:
            assert read_upload(bytes(damaged), SIZE).shape == SIZE
        except ValueError as error:
            assert str(error)


def test_pictures_in_units_of_their_own_are_seen_and_not_uploaded():
    x = 300 + 60 * torch.randn(40, *SIZE)
    vae = VAE(SIZE, MLP((8,)), Gaussian(2), GaussianValues(standardize=True)).eval()
    vae.initialize(x)
    explored = Explorer(vae, x)
    for images in (x, explored.decode(explored.encode(x[0]))):
        seen = explored.intensity(images)
        assert seen.min() >= 0 and seen.max() <= 1 and len(seen.unique()) > 20
    assert explored.intensity(torch.full(SIZE, 300.0)).mean() == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="units of their own, and no bytes"):
        explored.upload(FILES["GIF"])


@pytest.mark.parametrize("binarize", ["none", "threshold", "stochastic"])
def test_an_upload_is_binarised_as_the_data_is(binarize):
    vae = VAE(SIZE, MLP((8,)), Gaussian(2), BernoulliLikelihood()).eval()
    x = Explorer(vae, torch.zeros(1, *SIZE), binarize).upload(file("L", (7, 4)))
    assert x.shape == SIZE
    assert set(x.unique().tolist()) <= {0.0, 1.0} or binarize == "none"
    assert (len(x.unique()) > 2) == (binarize == "none")


def test_the_settings_and_a_missing_library(run, monkeypatch, capsys):
    def line(*arguments):
        with pytest.raises(SystemExit) as left:
            run("task=explore", *arguments)
        assert left.value.code == 2
        return capsys.readouterr().err

    zoo = "checkpoint=gaussian_vae-digits"
    assert "type checkpoint=runs/NAME" in line()
    assert "explore.port must be in 0 to 65535, got 70000" in line(zoo, "explore.port=70000")
    assert "explore.images must be positive, got 0" in line(zoo, "explore.images=0")

    monkeypatch.setitem(sys.modules, "nicegui", None)
    for module in ("page", "widgets"):
        monkeypatch.delitem(sys.modules, f"vae_lab.explorer.{module}", raising=False)
    assert "the explorer's page needs nicegui, which is not installed: type pip" in line(zoo)


def test_the_task_explores_the_models_own_test_images(run, monkeypatch):
    served = {}
    page = SimpleNamespace(serve=lambda *arguments: served.update(arguments=arguments))
    monkeypatch.setitem(sys.modules, "vae_lab.explorer.page", page)
    run("task=explore", "checkpoint=gumbel_vae-digits", "explore.images=30", "explore.port=8123")
    explored, title, port = served["arguments"]
    assert (title, port) == ("gumbel_vae-digits", 8123)
    assert explored.images.shape == (30, 1, 8, 8) and explored.kind == "codes"


def test_an_upload_is_read_as_the_data_is(run, monkeypatch):
    served = []
    page = SimpleNamespace(serve=lambda explored, *_: served.append(explored))
    monkeypatch.setitem(__import__("sys").modules, "vae_lab.explorer.page", page)
    for number in range(9):
        Path(f"pictures/{number}.png").parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(f"pictures/{number}.png")
    folder = "data=image_folder data.root=pictures data.image_size=8 data.channels=1"
    settings = f"{folder} data.batch_size=2 data.background=black data.val_size=1"
    run("task=explore", "checkpoint=gaussian_vae-digits", *settings.split())
    target = io.BytesIO()
    Image.new("LA", (8, 8), (200, 0)).save(target, "PNG")
    assert (served[0].upload(target.getvalue()) == 0).all()


def test_samples_of_codes_follow_the_y_that_moves_their_prior():
    parts = MLP((8,), "tanh"), Categorical(2, 4), BernoulliLikelihood()
    vae = randomize(VAE(SHAPE, *parts, condition=Labels(3, prior=True)), 2.0).eval()
    explored = Explorer(vae, torch.rand(20, *SHAPE).round(), y=torch.zeros(20, dtype=torch.int64))
    for y in range(3):
        found = explored.samples(20_000, y=y).mean(0)
        assert (found - vae.given(y).p_z().mean).abs().max() < 0.02
