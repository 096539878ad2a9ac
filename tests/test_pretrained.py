"""Releases and checkpoints as models for others: what is written, read and refused."""

import io
import json
import math
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import randomize
from torch import nn

from vae_lab import VAE, likelihoods, networks, register
from vae_lab.description import CLASSES, blueprint, describe, relaxation
from vae_lab.estimators import DecoupledSTGumbelSoftmax, GumbelSoftmax
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.networks import MLP, Conv, Grid, Linear, ResNet
from vae_lab.pretrained import card
from vae_lab.schedules import Linear as LinearSchedule
from vae_lab.storage import releases
from vae_lab.storage.checkpoints import save_checkpoint

PARTS = [
    pytest.param({"latent": Bernoulli(3, True)}, id="Bernoulli"),
    pytest.param({"latent": Categorical(3, 4)}, id="Categorical"),
    pytest.param({"latent": Gaussian(2, True)}, id="Gaussian"),
    pytest.param({"latent": Poisson(2)}, id="Poisson"),
    pytest.param({"network": Linear()}, id="Linear"),
    pytest.param({"network": Conv()}, id="Conv"),
    pytest.param({"network": ResNet()}, id="ResNet"),
    pytest.param({"network": Grid((4, 6), attention=True)}, id="Grid"),
    pytest.param({"network": Grid((4,), checkpointing=True)}, id="Checkpointing"),
    pytest.param({"network": MLP([5, 4], activation="tanh")}, id="MLP"),
    pytest.param({"likelihood": likelihoods.ContinuousBernoulli()}, id="ContinuousBernoulli"),
    pytest.param({"likelihood": likelihoods.Gaussian(0.3, learned=True)}, id="Learned"),
    pytest.param({"likelihood": likelihoods.Gaussian(0.3)}, id="Fixed"),
    pytest.param({"likelihood": likelihoods.Laplace(0.3, learned=True)}, id="Laplace"),
    pytest.param({"likelihood": likelihoods.DiscretizedLogistic()}, id="Logistic"),
    pytest.param({"likelihood": likelihoods.DiscretizedLogisticMixture(2)}, id="Mixture"),
]


RELEASED = sorted((Path(__file__).parent / "data").glob("*/release"))  # by each version


def small_vae(latent=None, network=None, likelihood=None, shape=(1, 4, 4)):
    parts = network or MLP((6,)), latent or Gaussian(4), likelihood or likelihoods.Bernoulli()
    return randomize(VAE(shape, *parts), 0.1).eval()


def save_run(vae, folder, name="best"):
    """A run that is still going: a checkpoint of train.py's, and no release."""
    path = folder / "checkpoints" / f"{name}.ckpt"
    weights = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    weights["estimator.baseline"] = torch.ones(1)
    save_checkpoint({"config": {}, "vae": blueprint(vae), "state_dict": weights}, path)
    return path


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("parts", PARTS)
def test_a_release_is_the_model(parts, tmp_path):
    vae = small_vae(**parts, shape=(1, 8, 8))
    vae.save_pretrained(tmp_path / "release", dataset="digits")
    loaded = VAE.from_pretrained(tmp_path)  # the run's folder
    x = torch.rand(2, 1, 8, 8).round()
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    for model in (loaded, vae):
        torch.manual_seed(1)
        model.bound = model.log_likelihood(x, 3)
    assert torch.equal(loaded.bound, vae.bound)
    assert not loaded.training and loaded.network == vae.network
    assert card(tmp_path)["dataset"] == "digits"


def test_every_kind_of_file_gives_the_same_model(tmp_path):
    vae = small_vae()
    release = vae.save_pretrained(tmp_path / "release")
    checkpoint = save_run(vae, tmp_path / "run")
    sources = release, str(release), release / "model.safetensors", tmp_path / "run", checkpoint
    for source in sources:
        assert same(VAE.from_pretrained(source), vae)


@pytest.mark.parametrize("parts", PARTS)
def test_a_checkpoint_describes_its_model(parts, tmp_path):
    vae = small_vae(**parts, shape=(1, 8, 8))
    loaded = VAE.from_pretrained(save_run(vae, tmp_path))
    assert same(loaded, vae) and blueprint(loaded) == blueprint(vae)


@pytest.mark.parametrize(
    "content", [{}, {"vae": "x", "state_dict": {}}, {"vae": {}, "state_dict": [1]}]
)
def test_a_checkpoint_without_a_description_says_what_to_give(content, tmp_path):
    torch.save({"config": {}} | content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="old.ckpt does not describe its model: give the release/"):
        VAE.from_pretrained(tmp_path / "old.ckpt")


def test_weights_that_are_no_tensors_are_missing(tmp_path):
    content = {"config": {}, "vae": blueprint(small_vae()), "state_dict": {"vae.head.weight": "x"}}
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="odd.ckpt does not describe its weights: missing: "):
        VAE.from_pretrained(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.parent.name)
def test_a_release_of_every_version_is_still_read(folder):
    x = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)
    expected = torch.tensor(card(folder)["reconstruction"]).reshape(x.shape)
    torch.testing.assert_close(
        VAE.from_pretrained(folder).reconstruct(x), expected, atol=1e-4, rtol=0
    )


def test_a_release_can_be_released_again(tmp_path):
    first = small_vae().save_pretrained(tmp_path / "first")
    second = VAE.from_pretrained(first).save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_half_the_bits_are_half_the_file_and_load_in_full_precision(tmp_path):
    vae = small_vae(network=MLP((64,)))
    whole, half = (vae.save_pretrained(tmp_path / str(d), d) for d in (None, torch.float16))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = VAE.from_pretrained(half).state_dict()
    for name, tensor in vae.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float())


def test_weights_that_are_no_numbers_are_not_released(tmp_path):
    vae = small_vae()
    with torch.no_grad():
        vae.output_bias[0, 0, 0] = 1e6
    with pytest.raises(
        ValueError, match="must be finite numbers, output_bias are not in torch.float16"
    ):
        vae.save_pretrained(tmp_path / "x", torch.float16)
    assert not (tmp_path / "x").exists()


def test_facts_neither_replace_the_description_nor_spoil_a_release(tmp_path):
    vae = small_vae()
    vae.save_pretrained(tmp_path)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    randomize(vae)
    with pytest.raises(ValueError, match="facts must not be named .*, got shape"):
        vae.save_pretrained(tmp_path, shape=(3, 3, 3))
    with pytest.raises(TypeError, match="not JSON serializable"):
        vae.save_pretrained(tmp_path, vae=vae)
    assert before == [path.read_bytes() for path in sorted(tmp_path.iterdir())]


# What is refused


def rewrite(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


REFUSED = [
    ({"format": 99}, "has format 99, this vae_lab reads 1 and 2"),
    ({"sha256": "0"}, "does not match the sha256"),
    ({"sha256": None}, "does not match the sha256"),
    ({"network": {"class": "os.system"}}, "unknown network 'os.system' .* known: MLP, Conv"),
    ({"network": {"class": "Network"}}, "unknown network 'Network'"),
    ({"network": {"_target_": "os.system", "command": "x"}}, "unknown network None"),
    ({"network": {"class": ["MLP"]}}, "unknown network ..MLP.."),
    ({"network": "MLP"}, "the network in .* must name its class, got 'MLP'"),
    ({"network": {"class": "MLP", "hidden": "abc"}}, "hidden must be .* got 'abc'"),
    ({"network": {"class": "MLP", "hidden": [0]}}, "hidden must be .* positive integers"),
    ({"network": {"class": "MLP", "activation": []}}, "the network in .* does not fit"),
    ({"latent": {"class": "discrete_latent", "latents": 1}}, "unknown latent"),
    ({"latent": {"class": "Gaussian", "width": 3}}, "the latent .* unexpected .* 'width'"),
    ({"latent": {"class": "Gaussian", "latents": 0}}, "latents must be at least 1, got 0"),
    ({"latent": {"class": "Gaussian", "latents": "4"}}, "the latent in .* does not fit"),
    ({"latent": {"class": "Gaussian", "latents": 4.5}}, "does not fit|describes no VAE"),
    ({"latent": {"class": "Gaussian", "latents": 10**30}}, "does not fit|describes no VAE"),
    ({"likelihood": {"class": "Gaussian", "sigma": "x"}}, "the likelihood in .* does not fit"),
    ({"likelihood": None, "shape": None}, "config.json lacks likelihood, shape"),
    ({"shape": 3}, "describes no VAE"),
    ({"shape": []}, "describes no VAE"),
    ({"shape": [1, 4]}, r"mismatched: output_bias is \[1, 4, 4\] there and \[1, 4\] here"),
    ({"shape": [1, 4, -4]}, "describes no VAE"),
    ({"shape": ["1", 4, 4]}, "describes no VAE"),
    ({"shape": [1, 4, 5]}, r"does not describe its weights: mismatched: .*\[6, 16\] there and"),
    ({"latent": {"class": "Gaussian", "latents": 10**7}}, "mismatched: head.weight is"),
    ({"network": {"class": "MLP", "hidden": [10**9, 10**9]}}, "missing: .* mismatched"),
]


@pytest.mark.parametrize("changes, message", REFUSED)
def test_what_is_not_a_release_of_this_library_is_refused(changes, message, tmp_path):
    """Also sizes that no memory holds: they are compared with the file before they are used."""
    release = rewrite(small_vae().save_pretrained(tmp_path), **changes)
    with pytest.raises(ValueError, match=message) as caught:
        VAE.from_pretrained(release)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "described, message",
    [
        ({"class": "Estimator"}, "unknown relaxation 'Estimator' in .* known: ARM, "),
        ({"class": "os.system"}, "unknown relaxation 'os.system'"),
        ({"class": "GumbelSoftmax", "temperature": "x"}, "does not fit this vae_lab"),
        ({"class": "GumbelSoftmax", "temperature": -1}, "temperature must be positive, got -1"),
        ("GumbelSoftmax", "must name its class, got 'GumbelSoftmax'"),
    ],
)
def test_a_relaxation_is_refused_likewise(described, message):
    with pytest.raises(ValueError, match=message):
        relaxation({"relaxation": described})


@pytest.mark.parametrize(
    "cls, schedules",
    [
        (GumbelSoftmax, ["temperature"]),
        (DecoupledSTGumbelSoftmax, ["forward_temperature", "backward_temperature"]),
    ],
)
def test_a_relaxation_comes_back_as_it_was(cls, schedules):
    estimator = cls(**{name: LinearSchedule(0.9, 0.3, 10) for name in schedules})
    for name in schedules:
        getattr(estimator, name).set_step(10)
    described = json.loads(json.dumps(describe(estimator)))
    assert all(described[name] == 0.3 for name in schedules)
    again = relaxation({"relaxation": described})
    assert type(again) is cls and describe(again) == described
    assert relaxation({}) is None


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a JSON file"),
        (b"<!doctype html>", "is not a JSON file"),
        (b"\xff\xfe\x00", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b"[]", "must hold a JSON object, got a list"),
        (b" " * 2_000_000, "must be a short text, got 2000000 bytes"),
    ],
)
def test_a_config_that_is_none_is_refused(content, message, tmp_path):
    (small_vae().save_pretrained(tmp_path) / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"config.json {message}"):
        VAE.from_pretrained(tmp_path)


def test_changed_weights_are_refused(tmp_path):
    path = small_vae().save_pretrained(tmp_path) / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    with pytest.raises(ValueError, match="does not match the sha256"):
        VAE.from_pretrained(tmp_path)


def test_no_model_is_said_plainly(tmp_path):
    message = "no release at .* expected a folder with config.json and model.safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        VAE.from_pretrained(tmp_path)
    small_vae().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=message):
        VAE.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model at absent: there is no such file"):
        VAE.from_pretrained("absent")


class Malice:
    """Unpickled, it makes a folder: what would have run can be seen."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickles(folder, marker):
    """The same malice in every place where a model is read from."""
    vae, malice = small_vae(), Malice(marker)
    torch.save({"config": {}, "vae": malice, "state_dict": {}}, folder / "new.ckpt")
    old = {"config": malice, "vae": blueprint(vae), "state_dict": vae.state_dict()}
    torch.save(old, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    (folder / "bare.ckpt").write_bytes(pickle.dumps(malice))
    weights = vae.save_pretrained(folder / "weights") / "model.safetensors"
    weights.write_bytes(pickle.dumps(malice))
    config = vae.save_pretrained(folder / "config") / "config.json"
    config.write_bytes(pickle.dumps(malice))
    return [folder / name for name in ("new.ckpt", "old.ckpt", "bare.ckpt", "weights", "config")]


@pytest.mark.parametrize("number", range(5))
def test_code_in_a_file_does_not_run(number, tmp_path):
    marker = tmp_path / "marker"
    with pytest.raises(ValueError):
        VAE.from_pretrained(pickles(tmp_path, marker)[number])
    assert not marker.exists()


def test_the_malice_works(tmp_path):
    """Or the test above would test nothing."""
    for number, path in enumerate(pickles(tmp_path, tmp_path / "marker")[:3]):
        if path.stem == "bare":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        (tmp_path / "marker").rmdir()
        assert number < 3


def test_weights_that_are_another_format_under_a_right_digest_are_refused(tmp_path):
    """The digest is the author's own: it says nothing about what is in the file."""
    import hashlib

    marker = tmp_path / "marker"
    release = small_vae().save_pretrained(tmp_path / "x")
    data = pickle.dumps(Malice(marker))
    (release / "model.safetensors").write_bytes(data)
    rewrite(release, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ValueError, match="is not a safetensors file"):
        VAE.from_pretrained(release)
    assert not marker.exists()


def test_an_archive_is_neither_unpacked_nor_leaves_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "x.zip", "w") as archive:
        archive.writestr("../marker", "x")
        archive.writestr("config.json", "{}")
    with tarfile.open(inside / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../marker"), io.BytesIO())
    for path in sorted(inside.iterdir()):
        with pytest.raises(FileNotFoundError, match="an archive must be unpacked first"):
            VAE.from_pretrained(path)
    # A checkpoint is an archive too.
    checkpoint = save_run(small_vae(), inside)
    with zipfile.ZipFile(checkpoint, "a") as archive:
        archive.writestr("../marker", "x")
        archive.writestr("/marker", "x")
    with pytest.raises(ValueError, match="is not a readable checkpoint|is damaged"):
        VAE.from_pretrained(checkpoint)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside"]


class Thin:
    """A network that nobody else knows; its trunks share a matrix."""

    def __init__(self, width):
        self.width = width

    def encoder(self, shape):
        return networks.base.Encoder(
            nn.Flatten(), nn.Linear(math.prod(shape), self.width), nn.Tanh(), features=self.width
        )

    def decoder(self, latent_size, shape):
        layers = nn.Linear(latent_size, latent_size), nn.Linear(latent_size, latent_size)
        layers[1].weight = layers[0].weight
        last = nn.Linear(latent_size, math.prod(shape))
        return nn.Sequential(*layers, last, nn.Unflatten(1, shape))


def test_a_class_called_like_another_is_not_taken_for_it(tmp_path):
    own = type("MLP", (Thin,), {})
    with pytest.raises(ValueError, match="MLP is test_pretrained.MLP, .* means vae_lab.networks"):
        small_vae(network=own(4)).save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match="vae_lab.networks.mlp.MLP has the name MLP already: give"):
        register(own)
    assert not [*tmp_path.iterdir()]


FORMAT_1 = {
    "network": {"MLP", "Conv", "Linear", "ResNet"},
    "latent": {"Bernoulli", "Categorical", "Gaussian", "Poisson"},
    "likelihood": {
        *("Bernoulli", "ContinuousBernoulli", "DiscretizedLogisticMixture", "Gaussian"),
    },
}


def test_what_the_first_version_does_not_know_has_a_format_that_it_refuses(tmp_path):
    ours = {
        kind: {name for name, cls in CLASSES[kind].items() if cls.__module__.startswith("vae_lab.")}
        for kind in FORMAT_1
    }
    assert set().union(*(ours[kind] - FORMAT_1[kind] for kind in FORMAT_1)) == releases.SINCE_2
    flat = VAE((1, 8, 8), MLP((4,)), Gaussian(2), likelihoods.Gaussian(0.1))
    pieces = (flat.network, flat.latent, likelihoods.Laplace(0.1)), (Grid((4,)), Gaussian(2))
    newer = VAE(flat.shape, *pieces[0]), VAE(flat.shape, *pieces[1], likelihoods.Gaussian(0.1))
    found = [card(vae.save_pretrained(tmp_path))["format"] for vae in (flat, *newer)]
    assert found == [1, 2, 2]
    assert type(VAE.from_pretrained(tmp_path).network) is Grid
