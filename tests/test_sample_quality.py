"""FID, precision and recall, and the network in whose features they are taken."""

import tomllib
from functools import cache
from urllib.error import URLError

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.train_features import accuracy, scaled
from datamodules.digits import Digits
from vae_lab import VAE
from vae_lab.evaluation import evaluate, samples
from vae_lab.evaluation import features as module
from vae_lab.evaluation.features import WEIGHTS, FeatureNetwork, choose, extract
from vae_lab.evaluation.samples import (
    beside_neighbours,
    frechet_distance,
    precision_recall,
    sample_quality,
)
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP

PARTS = MLP((1,)), Gaussian(1), Bernoulli()  # of models that draw their samples by other means


def with_moments(mean, root, count=200):
    """Features with exactly this mean and this root of the covariance."""
    x = torch.randn(count, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    whitened = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return whitened @ root.double().T + mean.double()


def test_the_distance_of_two_gaussians():
    """Of diagonal covariances: the squared distances of means and of standard deviations."""
    mean, other = torch.tensor([[1.0, 2, 3], [0, 5, 3]])
    std, other_std = torch.tensor([[1.0, 2, 0.5], [3, 2, 0]])
    a, b = with_moments(mean, std.diag()), with_moments(other, other_std.diag(), 300)
    expected = (mean - other).square().sum() + (std - other_std).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_the_distance_does_not_depend_on_the_axes():
    turn = nn.init.orthogonal_(torch.empty(4, 4, dtype=torch.float64))
    a, b = torch.randn(100, 4).double(), (torch.randn(100, 4) * 2 + 1).double()
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_and_a_shift_grows_it():
    x = torch.randn(50, 96)  # fewer than features
    assert frechet_distance(x, x) < 1e-9
    shifts = [frechet_distance(x, x + shift) for shift in (0.1, 0.5, 1.0)]
    assert shifts == pytest.approx([96 * 0.01, 96 * 0.25, 96], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*")
def test_the_distance_is_torchmetrics():
    a, b = torch.randn(200, 5) @ torch.randn(5, 5), torch.randn(150, 5) + 0.3
    flat = nn.Flatten()
    flat.num_features = 5
    metric = FrechetInceptionDistance(feature=flat).set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert frechet_distance(a, b) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_precision_and_recall_of_equal_and_of_distant_sets():
    x = torch.randn(200, 5)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_few_modes_have_precision_and_many_recall():
    wide, narrow = torch.randn(500, 2), 0.05 * torch.randn(500, 2)
    precision, recall = precision_recall(wide, narrow)
    assert precision > 0.9 and recall < 0.1
    assert precision_recall(narrow, wide) == (recall, precision)


def test_a_model_of_few_modes_is_precise_and_recalls_little():
    """And one that makes all that there is and more, the other way round."""

    class Modes(VAE):
        def __init__(self, spread):
            super().__init__((1, 1, 2), *PARTS)
            self.spread = spread

        def sample(self, count, temperature=1.0):
            return 0.5 + self.spread * torch.randn(count, 1, 1, 2)

    images = Modes(0.1).sample(300)
    few, many = (
        sample_quality(Modes(spread), images, features=nn.Flatten()) for spread in (0.005, 1.0)
    )
    assert few["precision"] > 0.9 and few["recall"] < 0.1
    assert many["precision"] < 0.2 and many["recall"] > 0.9


def test_precision_and_recall_on_a_line(monkeypatch):
    """With k = 1 a point's ball reaches to its neighbour: by hand."""
    real = torch.tensor([0.0, 1, 10, 12])[:, None]  # balls of radius 1, 1, 2, 2
    generated = torch.tensor([-1.0, 2.5, 8.5, 14.5])[:, None]  # 3.5, 3.5, 6, 6
    monkeypatch.setattr(samples, "ROWS", 4)  # a row at a time
    assert precision_recall(real, generated, k=1) == (0.5, 1)


def test_samples_are_as_many_as_the_images():
    """A model whose samples are images of the data, and what it is told about them."""
    images = torch.rand(700, 1, 8, 8)

    class Oracle(VAE):
        drawn = 0

        def sample(self, count, temperature=1.0):
            Oracle.drawn += count
            return images[Oracle.drawn - count : Oracle.drawn]

    vae, calls = Oracle((1, 8, 8), *PARTS), []

    def network(x):
        calls.append(len(x))
        return x.flatten(1)

    assert sample_quality(vae, images, features=network)["fid"] < 1e-6
    assert vae.drawn == 700 and sum(calls) == 1400 and max(calls) <= 500
    Oracle.drawn = 0
    quality = sample_quality(vae, images, 50, network, train_images=images[50:120])
    assert set(quality) == {"fid", "precision", "recall", "fid_floor", "nearest_train"}
    assert quality["fid"] < 1e-6 and quality["precision"] == quality["recall"] == 1
    floor = frechet_distance(images[:50].flatten(1), images[50:100].flatten(1))
    assert quality["fid_floor"] == pytest.approx(floor, rel=1e-9)
    assert "fid_floor" not in sample_quality(vae, images, 50, network, train_images=images[:49])


def test_a_trained_model_is_nearer_to_the_digits_than_noise():
    data = Digits().load()
    test = data.test.float() / 255
    vae = VAE.from_pretrained("gaussian_vae-digits")
    found = sample_quality(vae, test, train_images=data.train.float() / 255)
    noise = frechet_distance(extract(test), extract(torch.rand_like(test)))
    assert 0 < found["fid_floor"] < found["fid"] < noise / 5
    assert found["precision"] > 0.3 and found["recall"] > 0.1


def test_the_shipped_network_is_as_accurate_as_it_says():
    """On the digits, which are at hand; the numbers are in the docstring, too."""
    with safe_open(WEIGHTS, "pt") as file:
        facts = file.metadata()
    data, network = Digits().load(), choose(None)
    found = accuracy(network, scaled(data.test), data.test_labels + 10)
    assert found == pytest.approx(float(facts["digits"]), abs=0.004)
    for name in ("digits", "fashion_mnist"):
        assert f"{float(facts[name]):.3f}" in FeatureNetwork.__doc__
    assert WEIGHTS.stat().st_size < 1e6 and not network.training


def test_the_weights_are_in_the_package():
    root = WEIGHTS.parent.parent
    setuptools = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["vae_lab"]
    assert any(WEIGHTS in root.glob(pattern) for pattern in patterns)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48), (1, 8, 8), (2, 33, 20)])
def test_images_of_every_shape_have_features(shape):
    x = torch.rand(3, *shape)
    found = extract(x, batch=2)
    assert found.shape == (3, 96) and found.dtype == torch.float64
    torch.testing.assert_close(found[2:], extract(x[2:]))  # of one image, whatever the others are
    grey = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(extract(grey), found, atol=1e-4, rtol=1e-4)


def test_inception_is_asked_for_bytes_in_colour(monkeypatch):
    asked = []

    class Inception(nn.Module):
        def forward(self, x):
            asked.append(x)
            return x.float().flatten(1)

    monkeypatch.setattr(module, "_inception", Inception)
    extract(torch.tensor([0.0, 0.5, 1.0, 1.2]).view(1, 1, 2, 2), "inception")
    assert asked[0].shape == (1, 3, 2, 2) and asked[0].dtype == torch.uint8
    assert asked[0][0, 2].flatten().tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("features, network", [(None, "shipped"), ("inception", "_inception")])
def test_making_a_network_leaves_the_generator_alone(features, network, monkeypatch):
    class Distance:
        def __init__(self, feature):
            self.inception = nn.Bilinear(8, 8, 3)

    monkeypatch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", Distance)
    monkeypatch.setattr(module, network, cache(getattr(module, network).__wrapped__))
    before = torch.get_rng_state()
    choose(features)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_network_for_inception(monkeypatch):
    def offline(feature):
        raise URLError("no route to host")

    monkeypatch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", offline)
    with pytest.raises(FileNotFoundError, match="not be downloaded .*no route to host.*None takes"):
        extract(torch.rand(2, 1, 8, 8), "inception")


def test_what_is_missing_or_wrong_is_said(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ImportError, match="pip install torchmetrics torch-fidelity"):
        extract(torch.rand(2, 1, 8, 8), "inception")
    with pytest.raises(ValueError, match="None, inception or a function, got 'vgg'"):
        extract(torch.rand(2, 1, 8, 8), "vgg")
    with pytest.raises(ValueError, match=r"N and M at least 2, got \(1, 3\) and \(5, 3\)"):
        frechet_distance(torch.rand(1, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match="N and M at least 4"):
        precision_recall(torch.rand(3, 3), torch.rand(5, 3))


def test_samples_of_every_temperature_and_their_nearest_training_images():
    vae = VAE.from_pretrained("gaussian_vae-digits")
    data = Digits().load()
    test, train = data.test[:100].float() / 255, data.train[:300].float() / 255
    torch.manual_seed(0)
    found = sample_quality(vae, test, train_images=train, temperatures=[1.0, 0.5, 1e-6])
    names = ("fid", "precision", "recall", "nearest_train")
    assert set(found) == {n + at for n in names for at in ("", "_at_0.5", "_at_1e-06")} | {
        "fid_floor"
    }
    assert found["recall_at_1e-06"] < found["recall_at_0.5"] < found["recall"]
    assert found["fid_at_1e-06"] > found["fid"]

    class Copies(VAE):
        def sample(self, count, temperature=1.0):
            return train[:count]

    copies = sample_quality(Copies((1, 8, 8), *PARTS), test, train_images=train)
    assert copies["nearest_train"] < 1e-6 and 0.5 < found["nearest_train"] < 5


def test_neighbours_are_the_nearest_by_their_features():
    vae = VAE.from_pretrained("gaussian_vae-digits")
    train = Digits().load().train[:200].float() / 255
    torch.manual_seed(3)
    drawn = vae.sample(4, temperature=0.7)
    torch.manual_seed(3)
    rows = beside_neighbours(vae, torch.cat([train, drawn]), 4, 2, lambda x: x.flatten(1), 0.7)
    assert rows.shape == (3, 4, *vae.shape)
    assert torch.equal(rows[0], drawn) and torch.equal(rows[1], drawn)
    distance = torch.cdist(drawn.flatten(1), train.flatten(1))
    assert torch.equal(rows[2], train[distance.argmin(1)])


def test_a_prior_without_a_temperature_is_said_to_have_none():
    vae = VAE.from_pretrained("gumbel_vae-digits")
    x = Digits().load().test[:60].float() / 255
    found = evaluate(vae, [x], parts=["samples"], temperatures=[1.0, 0.7])
    assert "fid" in found.metrics and "fid_at_0.7" not in found.metrics
    assert any("temperature" in line for line in found.left_out) and not found.pictures
    with pytest.raises(ValueError, match="temperature 1 only, got 0.7"):
        vae.sample(2, temperature=0.7)
    with pytest.raises(ValueError, match=r"temperatures must be positive, one or more, got \[\]"):
        evaluate(vae, [x], temperatures=[])
