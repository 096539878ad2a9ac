"""Enumeration, in one piece and in chunks."""

import pytest
import torch
from oracles import CODES, bumpy
from torch import nn

from vae_lab.aggregates import log_mean_exp, mean
from vae_lab.estimators import Exact

ROWS, STATES = 4, 9


def gradients(estimator, network, aggregate, calls):
    """Of the value, for q's logits and for a network inside f, whose dropout draws noise."""
    torch.manual_seed(0)
    q, leaves = CODES.q(ROWS)

    def f(z):
        calls.append(len(z))
        return CODES.flat(bumpy)(z) + network(z.flatten(-2)).squeeze(-1)

    value = estimator(q, f, aggregate=aggregate)
    found = torch.autograd.grad(value.sum(), [leaves["logits"], *network.parameters()])
    return [value, *found]


@pytest.mark.parametrize("aggregate", [mean, log_mean_exp])
@pytest.mark.parametrize("states_at_a_time", [1, 2, 8])
def test_chunks_change_nothing(states_at_a_time, aggregate):
    network = nn.Linear(6, 1).double()
    whole, chunked = [], []
    samples = 1 if aggregate is mean else 2
    expected = gradients(Exact(samples), network, aggregate, whole)
    small = Exact(samples, max_points=states_at_a_time * ROWS)
    for got, want in zip(gradients(small, network, aggregate, chunked), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert whole == [STATES]
    assert max(chunked) == states_at_a_time
    assert sum(chunked) == 2 * STATES  # once forward, once more for the backward pass


def test_a_chunk_draws_the_same_noise_in_the_backward_pass():
    """The gradient for w of E[w noise] is E[noise], of the very noise in the value."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    q, _ = CODES.q(ROWS)
    value = Exact(max_points=ROWS)(q, lambda z: weight * torch.randn(z.shape[:2]).double())
    value.sum().backward()
    torch.testing.assert_close(weight.grad, value.sum().detach())


def test_one_state_is_the_least_there_is():
    q, _ = CODES.q(ROWS)
    calls = []
    Exact(max_points=1)(q, lambda z: (calls.append(len(z)), z.sum((-1, -2)))[1])
    assert calls == [1] * STATES
