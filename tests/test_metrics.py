"""Means over a split and over a window, in situations with known answers."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from vae_lab.latents import Bernoulli, Categorical
from vae_lab.metrics import BoundMetrics, Window, sums_and_count
from vae_lab.vae import Bound


def bound(elbo, kl):
    """A bound whose KL is `kl` for each variable and datum."""
    elbo, kl = torch.tensor(elbo), torch.tensor(kl)
    kl = kl.expand(len(elbo), -1)
    return Bound(elbo, elbo + kl.sum(-1), kl, Normal(0, 1))


def perplexity(logits, latent):
    """Of data with these logits, one row a datum."""
    codes = latent.codes(latent.distribution(torch.tensor(logits)))
    metrics = BoundMetrics(codes.shape[1], codes.shape[2], False)
    metrics.update(bound([0.0] * len(codes), [0.0] * codes.shape[1]), codes, None)
    return metrics.compute()["code_perplexity"].item()


def test_means_are_over_data_and_not_over_batches():
    metrics = BoundMetrics(2, None, relaxed=True)
    relaxed = torch.tensor([7.0, 7, 7])
    metrics.update(bound([-1.0, -2, -3], [0.5, 0.0]), None, relaxed)
    metrics.update(bound([-10.0], [0.1, 0.0]), None, torch.tensor([3.0]))
    values = metrics.compute()
    assert values["elbo"] == -4.0 and values["elbo_relaxed"] == 6.0
    assert values["kl"].item() == pytest.approx(0.4)
    assert values["reconstruction"].item() == pytest.approx(-3.6)
    assert "code_perplexity" not in values


def test_the_metrics_start_anew():
    metrics = BoundMetrics(1, None, relaxed=False)
    metrics.update(bound([-5.0], [1.0]), None, None)
    metrics.compute()
    metrics.reset()
    metrics.update(bound([-1.0], [2.0]), None, None)
    values = metrics.compute()
    assert values["elbo"] == -1.0 and values["kl"] == 2.0
    assert "elbo_relaxed" not in values


def test_an_empty_part_changes_nothing():
    metrics = BoundMetrics(2, None, relaxed=False)
    metrics.update(bound([-1.0], [0.5, 0.5]), None, None)
    metrics.update(Bound(torch.zeros(0), torch.zeros(0), torch.zeros(0, 2), None), None, None)
    assert metrics.compute()["elbo"] == -1.0


def test_active_units_are_those_with_some_kl_on_average():
    metrics = BoundMetrics(4, None, relaxed=False)
    metrics.update(bound([0.0, 0.0], [0.0, 0.011, 0.009, 3.0]), None, None)
    assert metrics.compute()["active_units"] == 2


def test_a_dead_code_has_perplexity_one_and_a_busy_one_all_its_categories():
    codes = Categorical(1, 4)
    assert perplexity([[100.0, 0, 0, 0]] * 3, codes) == pytest.approx(1)
    assert perplexity((100 * torch.eye(4)).tolist(), codes) == pytest.approx(4)
    assert perplexity([[0.0, 0, 0, 0]] * 3, codes) == pytest.approx(4)
    assert perplexity((100 * torch.eye(4))[:2].tolist(), codes) == pytest.approx(2)


def test_perplexity_is_the_mean_over_the_variables():
    assert perplexity([[100.0, 100.0], [100.0, -100.0]], Bernoulli(2)) == pytest.approx(1.5)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert perplexity([[math.log(4)]], Bernoulli(1)) == pytest.approx(math.exp(entropy))


def test_the_sums_keep_their_precision():
    """In float32 a sum of 3 million stops to notice 0.1."""
    metrics = BoundMetrics(1, None, relaxed=False)
    metrics.update(bound([-3e7], [0.0]), None, None)
    for _ in range(100):
        metrics.update(bound([-0.1], [0.0]), None, None)
    assert metrics.compute()["elbo"].item() * 101 == pytest.approx(-3e7 - 10, abs=0.01)


def test_the_sums_keep_their_precision_in_a_model_of_16_bits():
    """Where -27.19 and -27.13 would be the same number, which decides what is the best."""
    metrics = BoundMetrics(1, None, relaxed=False)
    nn.ModuleList([metrics]).to(torch.bfloat16)
    for _ in range(2):
        metrics.update(bound([-27.0] * 299 + [-28.0] * 2, [0.5]), None, None)
        assert metrics.compute()["elbo"].item() == pytest.approx(-27 - 2 / 301, abs=1e-9)
        metrics.reset()
    *_, count = sums_and_count((torch.full((301,), -27.0, dtype=torch.bfloat16),))
    assert count == 301


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("vae_lab.metrics.time.perf_counter", lambda: self.now)

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_window_means_are_over_data():
    window = Window()
    window.add(sums_and_count((torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 10, 10]))), 3)
    window.add(sums_and_count((torch.tensor([6.0]), torch.tensor([2.0]))), 1)
    window.add(sums_and_count((torch.zeros(0), torch.zeros(0))), 5)
    values = window.read(("a", "b"))
    assert (values["a"], values["b"]) == (3.0, 8.0)
    window.add(sums_and_count((torch.tensor([5.0]), torch.tensor([1.0]))), 1)
    values = window.read(("a", "b"))
    assert (values["a"], values["b"]) == (5.0, 1.0)


def test_the_window_keeps_no_graph():
    window = Window()
    window.add(sums_and_count((torch.ones(2, requires_grad=True),)), 2)
    assert not window.state_dict()["terms"].requires_grad


def test_a_resumed_window_has_the_same_bits():
    whole, first, resumed = Window(), Window(), Window()
    values = torch.rand(9, 1, 5)
    for value in values:
        whole.add(sums_and_count((*value,)), 5)
    for value in values[:6]:
        first.add(sums_and_count((*value,)), 5)
    resumed.load_state_dict(first.state_dict(), torch.device("cpu"))
    for value in values[6:]:
        resumed.add(sums_and_count((*value,)), 5)
    assert resumed.read(("a",))["a"] == whole.read(("a",))["a"]


def test_a_window_of_other_processes_begins_anew():
    window = Window()
    window.load_state_dict({"terms": torch.ones(2, 3, 2), "seconds": 4.0}, torch.device("cpu"))
    window.add(sums_and_count((torch.tensor([6.0]),)), 1)
    values = window.read(("a",))
    assert values["a"] == 6.0 and values["perf/seconds"] == 4.0


def test_speed_counts_the_images_of_all_processes_and_no_pause(clock):
    window = Window()
    window.resume()
    speeds = []
    for _ in range(3):
        window.add(sums_and_count((torch.ones(2),)), 8)
        clock.pass_by(1.0)
        window.pause()
        clock.pass_by(50.0)  # a validation
        window.resume()
        clock.pass_by(1.0)
        values = window.read(("a",))
        speeds.append(values.get("perf/images_per_second"))
    assert speeds == [None, 4.0, 4.0]  # the first has the warm-up in it
    assert values["perf/seconds"] == 6.0


def test_reading_while_paused_does_not_start_the_clock(clock):
    window = Window()
    for seconds in (1.0, 2.0):
        window.resume()
        window.add(sums_and_count((torch.ones(1),)), 4)
        clock.pass_by(seconds)
        window.pause()
        values = window.read(("a",))
        clock.pass_by(99.0)
    assert values["perf/images_per_second"] == 2.0


def test_on_a_grid_a_code_is_counted_over_the_places():
    """Four places, each with a code of its own: all of the codebook is in use."""
    latent = Categorical(1, 4)
    latent.bind((2, 2))
    logits = 100 * torch.eye(4).reshape(1, 2, 2, 4)
    codes = latent.codes(latent.distribution(logits))  # [1, 4, 4]
    metrics = BoundMetrics(4, 4, False, places=4)
    metrics.update(bound([0.0], [0.1, 0.0, 0.0, 0.0]), latent.places_as_data(codes), None)
    values = metrics.compute()
    assert values["code_perplexity"].item() == pytest.approx(4)
    assert values["active_units"] == 1 and values["active_channels"] == 1  # 0.025 nats on average


def test_the_channels_of_a_grid_are_active_by_the_mean_over_the_places():
    metrics = BoundMetrics(6, None, False, places=2)  # of 3 channels
    metrics.update(bound([0.0], [0.03, 0.019, 0.0, 0.0, 0.0, 0.0]), None, None)
    values = metrics.compute()
    assert values["active_units"] == 2 and values["active_channels"] == 1
