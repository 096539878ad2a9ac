"""The models that come with the package: their files, and the numbers on their cards."""

import functools
import math
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks import train_zoo
from benchmarks.train_zoo import PRIORS, RECIPES, bounds, compose_recipe, data_of
from commandline.check import check
from vae_lab import VAE, zoo
from vae_lab.pretrained import card

ROOT = Path(__file__).parent.parent
NAMES = zoo.names()
SOME = 60  # images of which the bound is estimated again


@functools.cache
def images(data):
    """The test split, which the models of a data set share."""
    return train_zoo.test_images(compose_recipe(f"gaussian_vae-{data}"))


def test_the_zoo_has_every_recipe_and_is_small():
    assert sorted(RECIPES) == NAMES
    assert sum(path.stat().st_size for path in zoo.FOLDER.rglob("*") if path.is_file()) < 10e6


def test_the_package_has_the_files():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = zoo.FOLDER.parent
    listed = {p for pattern in patterns["package-data"]["vae_lab"] for p in package.glob(pattern)}
    assert {path for path in zoo.FOLDER.glob("*/*.*") if path.suffix != ".pyc"} <= listed


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_how_the_model_was_made(name):
    facts = card(name)
    command = facts["command"].removeprefix("python train.py ").split()
    check(command)  # it can still be typed
    assert " ".join(command) == RECIPES[name]
    assert facts["commit"] and not facts["commit"].endswith("+")
    assert facts["data"]["binarize"] == compose_recipe(name).data.binarize
    assert facts["licence"] == "MIT"


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_weights_have_the_numbers_on_the_card(name):
    """The ELBO is the very same; the other bound is estimated from some of the images."""
    vae, numbers = VAE.from_pretrained(name), card(name)["test"]
    x = images(data_of(name))
    samples = numbers["nll"]["samples"]
    assert len(x) == numbers["images"]
    elbo, _ = bounds(vae, x, num_samples=1)
    error = elbo.std().item() / math.sqrt(len(elbo))
    assert numbers["elbo"]["standard_error"] == pytest.approx(error, abs=2e-3, rel=1e-4)
    assert elbo.mean().item() == pytest.approx(numbers["elbo"]["mean"], abs=0.01, rel=1e-5)
    # What importance weighting gains varies little from image to image.
    elbo, log_px = bounds(vae, x[:SOME], samples)
    gains = log_px - elbo
    gain = -numbers["nll"]["mean"] - numbers["elbo"]["mean"]
    assert gain > 0
    assert gains.mean().item() == pytest.approx(gain, abs=4 * gains.std().item() / math.sqrt(SOME))


@pytest.mark.parametrize("name", PRIORS)
def test_a_second_stage_is_the_first_with_a_better_prior(name):
    first, vae = (VAE.from_pretrained(n) for n in (name.rpartition("-")[0], name))
    own, weights = first.state_dict(), vae.state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in own)
    elbo, before = (card(n)["test"]["elbo"]["mean"] for n in (name, name.rpartition("-")[0]))
    assert vae.prior is not None and first.prior is None and elbo > before + 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_zoo_is_used_like_any_other(name):
    vae = VAE.from_pretrained(name)
    torch.manual_seed(0)
    images = vae.sample(4)
    assert images.shape == (4, *vae.shape) and images.min() >= 0 and images.max() <= 1
    assert vae.output_bias.dtype == torch.float32


def test_the_readme_has_the_numbers_of_the_cards():
    assert train_zoo.table() in (ROOT / "README.md").read_text()


def test_a_mistyped_name_is_answered_with_the_right_one():
    with pytest.raises(FileNotFoundError, match=f"did you mean {NAMES[0]}"):
        VAE.from_pretrained(NAMES[0].replace("_vae", "_vea"))
