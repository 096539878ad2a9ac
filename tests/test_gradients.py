"""The measurement of gradients: against what is known, and without a trace in training."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import binary_images, discrete_vae, is_encoder
from tiny import gradients as whole_gradient

from tasks.compare import _estimators, _made, _say_unequal
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
    [(_, (_, relax))] = _estimators(["relax"], model, x)
    guess, _ = relax.eval().average(torch.zeros(1), None)
    f = ELBO()(vae, Exact(), x).reconstruction.mean().item()
    assert guess.item() == pytest.approx(f, rel=0.2)


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        *[("straight_through", 6), ("score_function", 6), ("carms", 6), ("double_cv", 6)],
        *[("rebar", 3), ("muprop", 5), ("sum_and_sample", 3), ("relax", 6), ("unordered_set", 6)],
    ],
)
def test_estimators_are_compared_at_equal_evaluations(vae, name, samples):
    model = SimpleNamespace(vae=vae.float(), objective=ELBO())
    x = binary_images().float()
    [(_, (settings, estimator))] = _estimators([name], model, x, 6)
    assert (settings.num_samples, estimator.num_samples) == (samples, samples)
    assert _made(settings, model, x)[1] == 6


def test_what_cannot_have_equal_evaluations_is_named(vae, capsys):
    """Too many for one sample, or not of samples at all."""
    model = SimpleNamespace(vae=vae.float(), objective=ELBO())
    found = dict(_estimators(["rebar", "exact", "arsm"], model, binary_images().float(), 5))
    assert found["rebar"][0].num_samples == 2
    rows = [{"estimator": n, "evaluations": c} for n, c in (("a", 5.0), ("rebar", 4.0))]
    _say_unequal(rows, 5)
    assert capsys.readouterr().out == "no num_samples gives these 5 evaluations of f: rebar 4\n"
    _say_unequal(rows, None)
    assert not capsys.readouterr().out


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


ROW = {"bias": 0.1, "bias_noise": 0.05, "variance": 2.0, "seconds": 0.01}
CURVE = [{"step": s, "seconds": s / 10, "elbo": -5.0 + s} for s in range(3)]


@pytest.mark.parametrize("trained", [False, True])
def test_the_comparison_figure_has_dots_at_the_values_and_an_axis_that_can_be_read(
    tmp_path, monkeypatch, trained
):
    drawn = []
    monkeypatch.setattr(figures, "write", lambda figure, path: drawn.extend(figure.axes))
    values = {"test_elbo": -20.0, "lowest": -21.0, "highest": -19.0} if trained else {}
    rows = [{"estimator": n, **ROW, "variance": v, **values} for n, v in (("a", 2.0), ("b", 0.3))]
    curves = {"a": [CURVE, CURVE], "b": [CURVE]} if trained else {}
    figures.comparison(rows, curves, tmp_path / "compare.png")
    assert len(drawn) == (6 if trained else 3)
    keys = ["bias", "variance", "seconds", *(["test_elbo"] if trained else [])]
    for axis, key in zip(drawn, keys, strict=False):
        assert not axis.patches  # a bar on a logarithmic axis begins where it likes
        dots = [line.get_xydata()[0].tolist() for line in axis.lines if line.get_marker() == "o"]
        assert dots == [[row[key], place] for place, row in enumerate(rows)]
        low, high = axis.get_xlim()
        assert sum(low <= tick <= high for tick in axis.get_xticks()) >= 2, key


def test_one_that_is_exact_leaves_the_others_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "write", lambda figure, path: drawn.extend(figure.axes))
    values = {"exact": 0.0, "good": 0.5, "noisy": 1100.0}
    rows = [{"estimator": name, **ROW, "variance": value} for name, value in values.items()]
    figures.comparison(rows, {}, tmp_path / "compare.png")
    axis = drawn[1]
    assert axis.get_xscale() == "log"
    dots = {line.get_marker(): line.get_xdata()[0] for line in axis.lines[:2]}
    assert axis.get_xlim()[0] < dots["<"] < dots["o"] == 0.5


@pytest.mark.parametrize("curves", [{}, {"a": [CURVE, CURVE]}], ids=["measured", "trained"])
def test_the_comparison_figure_is_drawn(tmp_path, curves):
    figures.comparison([{"estimator": "a", **ROW}], curves, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5_000
