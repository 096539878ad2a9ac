"""ONNX graphs of a VAE, run without torch."""

import sys
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from test_pretrained import small_vae

from vae_lab import VAE, export, likelihoods
from vae_lab.distributions import base
from vae_lab.latents import (
    FSQ,
    LFQ,
    Bernoulli,
    Categorical,
    Codebook,
    CorrelatedGaussian,
    FlowGaussian,
    Gaussian,
    HierarchicalGaussian,
    Poisson,
    ResidualCodebook,
)
from vae_lab.networks import Grid, Linear
from vae_lab.priors import Autoregressive

FAMILIES = {
    "loc scale": Gaussian(2),
    "logits": Categorical(2, 3),
    "logits ": Bernoulli(3),
    "rate": Poisson(3),
    "loc scale_tril": CorrelatedGaussian(3),
}


@torch.no_grad()
def check(vae, folder, outputs):
    """Against torch, without anything of `vae_lab.export`."""
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    assert [output.name for output in encoder.get_outputs()] == outputs
    x = np.random.default_rng(0).integers(0, 2, (7, 1, 8, 8)).astype(np.float32)
    q = vae.encode(torch.from_numpy(x)).base_dist
    for name, found in zip(outputs, encoder.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(found, getattr(q, name).numpy(), atol=1e-4, rtol=1e-4)
    z = vae.latent.prior().sample((7,))
    expected = vae.likelihood.mean(vae.decode(z)).numpy()
    np.testing.assert_allclose(decoder.run(["mean"], {"z": z.numpy()})[0], expected, atol=1e-5)


@pytest.mark.parametrize("names", FAMILIES)
def test_the_encoder_gives_all_parameters_of_q(names):
    vae = small_vae(FAMILIES[names])
    graph = export.EncoderGraph(vae)
    assert graph.outputs == names.split()
    x = torch.rand(3, 1, 4, 4)
    q = base(vae.encode(x))
    again = type(q)(**dict(zip(graph.outputs, graph(x), strict=True)))
    z = q.sample()
    torch.testing.assert_close(again.log_prob(z), q.log_prob(z))


NEAREST = [Codebook(2, 5, 3, 0.0), FSQ((3, 2), 2), LFQ(4), ResidualCodebook(1, 2, 5, 3)]


@torch.no_grad()
@pytest.mark.parametrize("latent", NEAREST, ids=lambda latent: type(latent).__name__)
def test_nearest_codes_are_whole_numbers_in_and_out(tmp_path, latent):
    vae = small_vae(latent, Grid((4,)), shape=(1, 8, 8))
    export.export_onnx(vae, tmp_path)
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    x = torch.rand(5, 1, 8, 8)
    (codes,) = encoder.run(["codes"], {"x": x.numpy()})
    z = vae.latent.mode(vae.encode(x))
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes.reshape(5, -1), vae.latent.numbers(z).numpy())
    (found,) = decoder.run(["mean"], {"codes": codes})
    np.testing.assert_allclose(found, vae.likelihood.mean(vae.decode(z)).numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_stays_as_it_is(tmp_path, dtype):
    vae = small_vae(Gaussian(2), shape=(1, 8, 8)).to(dtype).train()
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    assert export.export_onnx(vae, tmp_path).difference < 1e-5
    assert vae.training and vae.dtype == dtype
    assert all(torch.equal(weight, before[name]) for name, weight in vae.state_dict().items())


@torch.no_grad()
def test_a_grid_with_a_prior_is_exported(tmp_path):
    vae = small_vae(Gaussian(2), Grid((4,)), shape=(1, 8, 8)).with_prior(Autoregressive(8, 1, 2))
    assert export.export_onnx(vae, tmp_path).difference < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("network", [Linear(), Grid((4,))], ids=["flat", "grid"])
def test_a_posterior_with_correlations_is_exported(tmp_path, network):
    vae = small_vae(CorrelatedGaussian(4), network, shape=(1, 8, 8))
    assert export.export_onnx(vae, tmp_path).difference < 1e-5
    encoder, x = onnxruntime.InferenceSession(tmp_path / "encoder.onnx"), torch.rand(5, 1, 8, 8)
    loc, root = encoder.run(["loc", "scale_tril"], {"x": x.numpy()})
    q = base(vae.encode(x))
    np.testing.assert_allclose(loc, q.loc, atol=1e-5)
    np.testing.assert_allclose(root @ root.swapaxes(-1, -2), q.covariance_matrix, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("network", [Linear(), Grid((4,))], ids=["flat", "grid"])
@pytest.mark.parametrize(
    "latent",
    [
        partial(HierarchicalGaussian, (3, 2), (8,)),
        partial(FlowGaussian, 3, transforms=2, hidden=(8,)),
    ],
    ids=["levels", "flow"],
)
def test_z_is_one_in_and_out_where_its_parameters_are_not_all(tmp_path, network, latent):
    vae = small_vae(latent(), network, shape=(1, 8, 8))
    export.export_onnx(vae, tmp_path)
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    x = torch.rand(5, 1, 8, 8)
    (z,) = encoder.run(["z"], {"x": x.numpy()})
    np.testing.assert_allclose(z, vae.encode(x).mean, atol=1e-5)
    (found,) = decoder.run(["mean"], {"z": z})
    np.testing.assert_allclose(found, vae.reconstruct(x), atol=1e-5)


def test_the_graphs_do_what_the_model_does(tmp_path):
    mixture = likelihoods.DiscretizedLogisticMixture(2)
    vae = small_vae(Categorical(2, 3), Linear(), mixture, shape=(1, 8, 8))
    assert export.export_onnx(vae, tmp_path / "onnx").difference < 1e-5
    check(vae, tmp_path / "onnx", ["logits"])


slow = partial(pytest.param, marks=pytest.mark.slow)

GRIDS = {
    "sigma": (Gaussian(2), likelihoods.Gaussian(0.2, learned=True), {}),
    "three halvings": (Gaussian(2), likelihoods.Gaussian(0.2), {"channels": (4, 6, 6)}),
    "four halvings": (Gaussian(2), likelihoods.Gaussian(0.2), {"channels": (4, 6, 6, 6)}),
    "laplace": (Categorical(1, 5), likelihoods.Laplace(0.2), {"padding": "reflect"}),
    "logistic": (
        Bernoulli(2),
        likelihoods.DiscretizedLogistic(),
        {"norm": "group", "attention": True, "padding": "circular"},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [name if name == "four halvings" else slow(name) for name in GRIDS],
)
def test_the_graphs_of_a_grid_take_pictures_of_any_size(tmp_path, name):
    latent, likelihood, settings = GRIDS[name]
    vae = small_vae(latent, Grid(**{"channels": (4, 6)} | settings), likelihood, shape=(3, 8, 12))
    assert export.export_onnx(vae, tmp_path).difference < 1e-5
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    for height, width in ((8, 12), (21, 34)):
        other, x = vae.at(3, height, width), torch.rand(3, 3, height, width)
        q, z = other.encode(x).base_dist, other.latent.prior().sample((3,))
        names = [output.name for output in encoder.get_outputs()]
        for name, found in zip(names, encoder.run(names, {"x": x.numpy()}), strict=True):
            np.testing.assert_allclose(found, getattr(q, name).numpy(), atol=1e-5)
        found = decoder.run(["mean"], {"z": z.numpy()})[0][..., :height, :width]
        np.testing.assert_allclose(found, other.likelihood.mean(other.decode(z)), atol=1e-5)


def test_graphs_that_are_not_the_model_are_not_written(tmp_path, monkeypatch):
    other, write = small_vae(network=Linear()), torch.onnx.export
    monkeypatch.setattr(
        torch.onnx, "export", lambda graph, *a, **k: write(type(graph)(other).eval(), *a, **k)
    )
    with pytest.raises(RuntimeError, match=r"encoder.onnx is .* from torch, relatively"):
        export.export_onnx(small_vae(network=Linear()), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_model_of_the_zoo_is_exported_and_sampled(run, tmp_path, capsys):
    line = "checkpoint=gaussian_vae-digits", "run_dir=x"
    run("task=export", *line)
    assert "exported: x/onnx/encoder.onnx, x/onnx/decoder.onnx; at most" in capsys.readouterr().out
    run("task=sample", *line)
    assert (tmp_path / "x" / "samples.png").is_file()
    onnx = tmp_path / "x" / "onnx"
    check(VAE.from_pretrained("gaussian_vae-digits"), onnx, ["loc", "scale"])


@pytest.mark.parametrize(
    "line, message",
    [
        ("task=export", "task=export needs a trained model: type checkpoint=runs/NAME"),
        ("task=export checkpoint=gaussian_vae-digits", "type run_dir=FOLDER"),
        ("task=sample checkpoint=gausian_vae-digits", "did you mean gaussian_vae-digits"),
        ("init.encoder=gumbel_vae-fashion_mnist", "the encoder of gumbel_vae-fashion_mnist does"),
        ("init.encoder=hf:digits", "a model of Hugging Face is hf:owner/name"),
        ("init.decoder=wandb:team/digits", "a W&B model is wandb:entity/project/artifact:alias"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, capsys, line, message):
    with pytest.raises(SystemExit) as caught:
        run(*line.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit):
        run("task=export", "checkpoint=gaussian_vae-digits", "run_dir=x")
    error = capsys.readouterr().err
    assert error == (
        "train.py: ONNX export needs onnxruntime, which is not installed: type "
        "pip install -e '.[export]'\n"
    )
    assert list(tmp_path.iterdir()) == []
