"""The measurement of gradients: against what is known, and without a trace in training."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import binary_images, discrete_vae, is_encoder
from tiny import gradients as whole_gradient

from configs.compare import _estimators
from vae_lab import figures
from vae_lab.callbacks import GradientProbe
from vae_lab.estimators import Exact, ScoreFunction, StraightThrough
from vae_lab.gradients import Reference, encoder_gradients, reference, statistics
from vae_lab.latents import Bernoulli, Categorical
from vae_lab.objectives import ELBO, IWAE


@pytest.fixture
def vae():
    return discrete_vae(Categorical(2, 3))


def test_the_encoder_gradient_is_the_encoder_part_of_the_gradient(vae):
    x = binary_images()
    (row,) = encoder_gradients(vae, ELBO(), Exact(), x, 1)
    whole = whole_gradient(ELBO(), vae, Exact(), x)
    torch.testing.assert_close(row, whole[is_encoder(vae)])


def test_measuring_moves_no_running_average(vae):
    estimator = ScoreFunction(2, "moving_average")
    before = {name: t.clone() for name, t in estimator.state_dict().items()}
    encoder_gradients(vae, ELBO(), estimator, binary_images(), 3)
    assert all(torch.equal(t, before[name]) for name, t in estimator.state_dict().items())
    assert estimator.training


def test_small_supports_are_enumerated_and_large_ones_averaged(vae):
    x = binary_images()
    assert reference(vae, ELBO(), x).exact
    average = reference(vae, ELBO(), x, repeats=200, max_states=8)
    assert not average.exact and average.variance > 0
    exact = reference(vae, ELBO(), x)
    assert (average.gradient - exact.gradient).norm() < 5 * average.variance**0.5


def test_a_bound_is_referred_to_the_bound(vae):
    x = binary_images()
    (expected,) = encoder_gradients(vae, IWAE(), Exact(2), x, 1)
    torch.testing.assert_close(reference(vae, IWAE(), x, num_samples=2).gradient, expected)


def test_a_bound_of_one_sample_is_referred_to_the_elbo(vae):
    """Also where it is averaged, over more samples than one."""
    x = binary_images()
    (exact,) = encoder_gradients(vae, IWAE(), Exact(1), x, 1)
    average = reference(vae, IWAE(), x, num_samples=1, repeats=200, max_states=8)
    assert not average.exact
    assert (average.gradient - exact).norm() < 3 * average.variance**0.5


def test_a_comparison_measures_control_variates_near_f(vae):
    """The moving average has seen f before the gradients are measured, which leaves it alone."""
    vae, x = vae.float(), binary_images().float()
    model = SimpleNamespace(vae=vae, objective=ELBO())
    [(_, relax)] = _estimators(["relax"], model, x)
    guess, _ = relax.eval().average(torch.zeros(1), None)
    f = ELBO()(vae, Exact(), x).reconstruction.mean().item()
    assert guess.item() == pytest.approx(f, rel=0.2)


def test_bias_stands_above_the_noise_only_where_there_is_one():
    vae, x = discrete_vae(Bernoulli(3)), binary_images(8)
    truth = reference(vae, ELBO(), x)
    unbiased = statistics(encoder_gradients(vae, ELBO(), ScoreFunction(4), x, 400), truth)
    biased = statistics(encoder_gradients(vae, ELBO(), StraightThrough(), x, 400), truth)
    assert unbiased.bias < 2 * unbiased.bias_noise
    assert biased.bias > 3 * biased.bias_noise
    assert 0 < biased.cosine <= 1


def test_an_exact_gradient_has_no_noise_and_can_be_drawn(tmp_path):
    found = statistics(torch.ones(3, 2), Reference(torch.ones(2), 0.0, True))
    assert (found.bias, found.variance, found.snr) == (0, 0, math.inf)
    figures.comparison([vars(found) | {"estimator": "exact", "seconds": 1}], {}, tmp_path / "x.png")


def test_statistics_of_known_vectors():
    samples = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    found = statistics(samples, Reference(torch.tensor([2.0, 0.0]), 0.0, True))
    assert found.bias == pytest.approx(0.5)
    assert found.variance == pytest.approx(2.0)
    assert found.snr == pytest.approx(2 / 2**0.5)
    assert found.bias_noise == pytest.approx(0.5)


def test_a_probe_refuses_too_few_repeats(tmp_path):
    with pytest.raises(ValueError, match="repeats at least 2"):
        GradientProbe(tmp_path, repeats=1)


def test_the_comparison_figure_is_drawn(tmp_path):
    row = {"bias": 0.1, "bias_noise": 0.05, "variance": 2.0, "seconds": 0.01}
    curve = [{"step": s, "seconds": s / 10, "elbo": -5.0 + s} for s in range(3)]
    rows = [{"estimator": name, **row} for name in ("a", "b")]
    figures.comparison(rows, {"a": [curve, curve], "b": [curve]}, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_the_comparison_figure_needs_no_training(tmp_path):
    row = {"estimator": "a", "bias": 0.1, "bias_noise": 0.05, "variance": 2.0, "seconds": 0.01}
    figures.comparison([row], {}, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5_000
