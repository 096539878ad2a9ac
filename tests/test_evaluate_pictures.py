"""The evaluation of pictures: grids of latents, features, errors of reconstructions, and bits."""

import json
import math

import pytest
import torch
from tiny import SHAPE, LinearGaussian, binary_images, discrete_vae, randomize, values

from vae_lab import VAE
from vae_lab.evaluation import evaluate, features
from vae_lab.evaluation.distance import FeatureDistance, structural_similarity
from vae_lab.evaluation.samples import frechet_distance, reconstruction_fid
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.networks import Grid


def test_grey_pixels_have_no_likelihood():
    vae = discrete_vae(Gaussian(2))
    found = evaluate(vae, [torch.rand(20, *SHAPE).double()], parts=["bound"], samples=2)
    assert "no likelihood" in found.metrics["log_likelihood"].note
    assert "bits_per_dimension" not in found.metrics
    assert {d.name: d.level for d in found.diagnosis}["grey pixels"] == "warning"


def test_features_that_cannot_be_had_are_missed_at_once(monkeypatch):
    def missing():
        raise FileNotFoundError("no route to host")

    monkeypatch.setattr(features, "_inception", missing)
    vae, x, told = discrete_vae(Gaussian(2)), binary_images(60), []
    settings = {"samples": 2, "features": "inception", "progress": lambda *step: told.append(step)}
    with pytest.raises(FileNotFoundError, match="no route to host"):
        evaluate(vae, [x], **settings)
    assert told == []
    assert "elbo" in values(evaluate(vae, [x], parts=["bound"], **settings))  # has no use for them


def grid_vae(latent, likelihood=None):
    vae = VAE((3, 16, 16), Grid((4, 8)), latent, likelihood or Normal(0.3)).double()
    return randomize(vae, 0.2).eval()


@pytest.mark.parametrize("latent", [Gaussian(2), Categorical(1, 5), Bernoulli(3), Poisson(2)])
def test_a_grid_is_summed_up_by_channel_and_by_place(latent):
    x, y = torch.rand(60, 3, 16, 16), torch.arange(60) % 2
    found = evaluate(grid_vae(latent).float(), [(x, y)], train=[(x, y)], samples=4)
    names, channels = values(found), latent.num_variables // 16
    assert {len(numbers) for numbers in found.per_latent.values()} == {channels}
    maps = {name: torch.tensor(rows) for name, rows in found.per_place.items()}
    assert {tuple(rows.shape) for rows in maps.values()} == {(4, 4)}
    for name in ("kl", "marginal_kl"):
        assert sum(found.per_latent[name]) == pytest.approx(names[name], rel=1e-4)
        assert maps[name].sum().item() == pytest.approx(names[name], rel=1e-4)
    assert names["active_channels"] <= channels and "ais_log_likelihood" not in names
    assert {"fid", "precision", "linear_probe", "mse", "psnr"} <= names.keys()  # of colours, too
    assert ("code_usage" in names) == isinstance(latent, Categorical | Bernoulli)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_grid_is_annealed_if_asked():
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    found = evaluate(grid_vae(Gaussian(1)), [x], parts=["ais"], ais_images=2, ais_steps=3)
    assert "2 images" in found.metrics["ais_log_likelihood"].note


def test_the_errors_of_reconstructions():
    vae, x = grid_vae(Gaussian(2)), torch.rand(10, 3, 16, 16, dtype=torch.float64)
    names = values(evaluate(vae, [x], parts=["bound"], samples=2))
    mse = (vae.reconstruct(x) - x).square().flatten(1).mean(1)
    assert names["mse"] == pytest.approx(mse.mean().item())
    assert names["psnr"] == pytest.approx(-10 * mse.log10().mean().item())
    y = vae.reconstruct(x)
    assert names["ssim"] == pytest.approx(structural_similarity(x, y).mean().item())
    distance = FeatureDistance().double()(x, y)
    assert names["feature_distance"] == pytest.approx(distance.mean().item())
    binary = values(evaluate(discrete_vae(Gaussian(2)), [binary_images()], parts=["bound"]))
    assert "mse" in binary and not {"psnr", "ssim", "feature_distance"} & binary.keys()
    small = values(evaluate(vae.at(3, 4, 4), [x[..., :4, :4]], parts=["bound"]))
    assert "psnr" in small and "ssim" not in small


def test_the_distance_of_reconstructions_is_that_of_their_features():
    vae, x = grid_vae(Gaussian(2)).float(), torch.rand(60, 3, 16, 16)
    found = values(evaluate(vae, x.split(25), parts=["samples"]))
    y = vae.reconstruct(x)
    wanted = frechet_distance(features.extract(x), features.extract(y))
    assert found["rfid"] == pytest.approx(wanted, rel=1e-3) and wanted > 1
    assert reconstruction_fid(vae, x, y) < 1e-3


def test_the_bits_of_a_density_are_a_bound_on_those_of_bytes():
    """x = W z + b + noise: bytes with uniform noise cost no less than the mass that the density has
    in their bins, which is its integral there."""
    model = LinearGaussian(Gaussian(2))
    x = (255 * torch.rand(20_000, *SHAPE, dtype=torch.float64)).round() / 255
    found = evaluate(model.vae, [x], parts=["bound"], samples=2)
    bits = found.metrics["dequantized_bits_per_dimension"]
    model.x = (255 * x + 0.5) / 256  # bins so narrow that the density is even in them
    mass = 8 - model.log_evidence() / (4 * math.log(2))
    gap = (model.log_evidence() - model.elbo()) / (4 * math.log(2))
    assert gap.mean() > 0.01
    expected = (mass + gap).mean().item()
    assert bits.value == pytest.approx(expected, abs=4 * bits.standard_error)
    assert bits.value > mass.mean()
    assert "bits_per_dimension" not in found.metrics
    x[0] += 0.3 / 255  # no bytes
    found = evaluate(model.vae, [x.clamp(0, 1)], parts=["bound"], samples=2)
    assert "dequantized_bits_per_dimension" not in found.metrics
