"""What loading a model leaves alone, and what is taken of one for another."""

import contextlib
import subprocess
import sys

import pytest
import torch
from test_pretrained import rewrite, same, save_run, small_vae

from vae_lab import VAE, likelihoods
from vae_lab.description import describe, relaxation
from vae_lab.estimators import GumbelSoftmax
from vae_lab.latents import Categorical, Gaussian
from vae_lab.networks import MLP, Conv, Grid, Linear
from vae_lab.pretrained import load

# What loading leaves alone


@contextlib.contextmanager
def default(device=None, dtype=None):
    before = torch.get_default_dtype()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


def contexts():
    return {
        "plain": contextlib.nullcontext(),
        "no_grad": torch.no_grad(),
        "inference": torch.inference_mode(),
        "meta": torch.device("meta"),
        "meta as default": default("meta"),
        "both": combined(torch.inference_mode(), torch.device("meta")),
        "float64": default(dtype=torch.float64),
    }


@contextlib.contextmanager
def combined(*managers):
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


@pytest.mark.parametrize("kind", ["release", "checkpoint", "zoo"])
@pytest.mark.parametrize("name", contexts())
def test_loading_leaves_the_caller_alone_and_is_left_alone(name, kind, tmp_path):
    vae = small_vae(likelihood=likelihoods.Gaussian(0.3))
    source = vae.save_pretrained(tmp_path / "x") if kind == "release" else save_run(vae, tmp_path)
    if kind == "zoo":
        vae, source = VAE.from_pretrained("gaussian_vae-digits"), "gaussian_vae-digits"
    torch.manual_seed(0)
    with contexts()[name]:
        loaded = VAE.from_pretrained(source)
    assert torch.rand(()).item() == pytest.approx(0.4963, abs=1e-4)
    x = torch.rand(2, *vae.shape).round()
    assert all(p.is_leaf and p.device.type == "cpu" for p in loaded.parameters())
    assert {p.dtype for p in loaded.parameters()} == {
        torch.float64 if name == "float64" else torch.float32
    }
    loaded = loaded.float()
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    (-loaded(x).objective.mean()).backward()
    assert loaded.head.weight.grad.any()


@pytest.mark.parametrize("name", contexts())
def test_taking_a_part_leaves_the_caller_alone(name, tmp_path):
    theirs, ours = small_vae(), small_vae()
    theirs.save_pretrained(tmp_path)
    torch.manual_seed(0)
    with contexts()[name]:
        ours.load_pretrained(tmp_path)
    assert torch.rand(()).item() == pytest.approx(0.4963, abs=1e-4)
    assert same(theirs, ours) and ours.head.weight.requires_grad
    ours(torch.rand(2, 1, 4, 4)).objective.sum().backward()


@pytest.mark.parametrize("name", contexts())
def test_saving_leaves_the_caller_alone(name, tmp_path):
    vae = small_vae()
    torch.manual_seed(0)
    with contexts()[name]:
        vae.save_pretrained(tmp_path)
    assert torch.rand(()).item() == pytest.approx(0.4963, abs=1e-4)
    assert same(VAE.from_pretrained(tmp_path), vae)


@pytest.mark.parametrize("name", contexts())
def test_a_relaxation_comes_back_whatever_the_context(name):
    facts = {"relaxation": describe(GumbelSoftmax(0.3))}
    with contexts()[name]:
        again = relaxation(facts)
    assert again.temperature.value.item() == pytest.approx(0.3)
    assert not again.temperature.value.is_inference()


# Parts of other models


def changed(model, before):
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_part_is_taken_whole_and_alone(part, tmp_path):
    """A decoder of four numbers serves a Gaussian latent and two bits of one-hot codes alike."""
    theirs = small_vae(likelihood=likelihoods.Gaussian(0.5, learned=True))
    theirs.save_pretrained(tmp_path)
    ours = small_vae(Categorical(2, 2), likelihood=likelihoods.Gaussian(0.5, learned=True))
    before = copied(ours)
    report = ours.load_pretrained(tmp_path, part)
    assert changed(ours, before) == set(report.taken) and report.taken and report.complete
    assert all(torch.equal(ours.state_dict()[n], theirs.state_dict()[n]) for n in report.taken)
    decoder = {"output_bias", "likelihood.log_sigma"} <= set(report.taken)
    assert decoder is (part == "decoder")


def test_the_posterior_is_the_head_and_the_latent(tmp_path):
    theirs, ours = (small_vae(Gaussian(4, learn_prior=True)) for _ in range(2))
    before = copied(ours)
    report = ours.load_pretrained(theirs.save_pretrained(tmp_path), "posterior")
    assert {*report.taken} == {"head.weight", "head.bias", "latent.prior_parameters"}
    assert report.complete and changed(ours, before) == {*report.taken}
    x = torch.rand(2, 1, 4, 4)
    ours.load_pretrained(tmp_path, "encoder")
    assert torch.equal(ours.encode(x).mean, theirs.encode(x).mean)
    with pytest.raises(ValueError, match="the posterior of .* mismatched: latent is .*Gaussian.*"):
        small_vae(Categorical(2, 4)).load_pretrained(tmp_path, "posterior")


@pytest.mark.parametrize("part", ["encoder", "posterior", "decoder", None])
def test_a_grid_takes_parts_of_one_for_pictures_of_another_size(part, tmp_path):
    """And it does not matter which of the two keeps its activations."""
    theirs, ours = (
        small_vae(Gaussian(2), Grid((4, 6), checkpointing=again), shape=(3, size, 8))
        for again, size in ((True, 8), (False, 13))
    )
    before = copied(ours)
    report = ours.load_pretrained(theirs.save_pretrained(tmp_path), part)
    assert report.complete and {*report.taken} >= changed(ours, before) != set()
    other = small_vae(Gaussian(2), Grid((4, 6), norm="group"), shape=(3, 8, 8))
    if part != "posterior":
        with pytest.raises(ValueError, match="network is .*'place'.* there and .*'group'"):
            other.load_pretrained(tmp_path, part)


def test_a_whole_model_is_taken(tmp_path):
    theirs, ours = small_vae(), small_vae()
    assert not same(theirs, ours)
    report = ours.load_pretrained(theirs.save_pretrained(tmp_path))
    assert same(theirs, ours) and report.complete


def test_a_part_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    small_vae().save_pretrained(tmp_path)
    others = small_vae(Gaussian(5)), small_vae(network=MLP((7,))), small_vae(network=Linear())
    for ours in others:
        before = copied(ours)
        with pytest.raises(ValueError, match=r"the decoder of .* does not fit: .*decoder\.0"):
            ours.load_pretrained(tmp_path, "decoder")
        assert not changed(ours, before)


def test_the_refusal_names_what_differs_and_what_to_type(tmp_path):
    small_vae().save_pretrained(tmp_path)
    learned = small_vae(likelihood=likelihoods.Gaussian(0.5, learned=True))
    cases = {
        small_vae(Gaussian(5)): r"mismatched: decoder\.0\.weight is \[6, 4\] there and \[6, 5\]",
        learned: r"missing: likelihood\.log_sigma; mismatched: likelihood is .*strict=False",
        small_vae(
            network=MLP((6,), "tanh")
        ): "mismatched: network is .*'relu'.* there and .*'tanh'",
    }
    for ours, message in cases.items():
        with pytest.raises(ValueError, match=message):
            ours.load_pretrained(tmp_path, "decoder")


def test_what_fits_is_taken_where_that_is_asked_for(tmp_path):
    theirs = small_vae()
    ours = small_vae(Gaussian(5))
    before = copied(ours)
    report = ours.load_pretrained(theirs.save_pretrained(tmp_path), "decoder", strict=False)
    assert changed(ours, before) == set(report.taken)
    assert "output_bias" in report.taken and "decoder.0.weight" not in report.taken
    assert "mismatched: decoder.0.weight is [6, 4] there and [6, 5] here" in str(report)


def test_taking_nothing_is_refused_in_any_case(tmp_path):
    release = small_vae(network=Linear()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the encoder of .* does not fit"):
        small_vae().load_pretrained(release, "encoder", strict=False)


def test_a_release_with_other_weights_is_loaded_in_part_where_that_is_asked_for(tmp_path):
    vae = small_vae()
    release = rewrite(vae.save_pretrained(tmp_path), latent={"class": "Gaussian", "latents": 5})
    with pytest.raises(ValueError, match="does not describe its weights: mismatched: head.weight"):
        load(release)
    with pytest.warns(UserWarning, match="in part: taken: .* mismatched: head.weight"):
        loaded = VAE.from_pretrained(release, strict=False)
    assert torch.equal(loaded.output_bias, vae.output_bias)


NOT_IMPORTED = {"torch._dynamo", "lightning", "pytorch_lightning", "hydra", "wandb"}


def test_loading_imports_neither_the_compiler_nor_what_trains(tmp_path):
    """Which takes seconds; torch does to draw a normal number on the meta device."""
    small_vae(network=Conv()).save_pretrained(tmp_path)
    code = f"""
import sys
from vae_lab import VAE
VAE.from_pretrained({str(tmp_path)!r})
sys.exit(not sys.modules.keys().isdisjoint({sorted(NOT_IMPORTED)}))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
