"""What a score function's credit is compared with."""

import pytest
import torch
from oracles import BITS, bumpy, features

from vae_lab.estimators import ScoreFunction


def test_a_learned_baseline_learns():
    estimator = ScoreFunction(1, "learned").double()
    q, _ = BITS.q(256)
    context = features(256)
    target = lambda z: 3 * context[:, 0] + 0 * z.sum(-1)  # noqa: E731
    estimator(q, target, context=context)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        estimator(q, target, context=context).mean().backward()
        optimizer.step()
    values = target(q.sample((1,)))
    guess, loss = estimator.baseline(values, context)
    torch.testing.assert_close(loss, (values - guess).square().mean(0))
    assert loss.mean() < 0.1 * 9


def test_moving_average_never_contains_the_present_batch():
    estimator = ScoreFunction(1, "moving_average").double()
    values = torch.full((1, 4), 6.0, dtype=torch.float64)
    guesses = [estimator.baseline(values, None)[0][0, 0].item() for _ in range(3)]
    assert guesses[0] == 0.0
    assert guesses[1:] == pytest.approx([6.0, 6.0])
    estimator.eval()
    before = estimator.baseline.average.clone()
    estimator.baseline(values, None)
    assert torch.equal(before, estimator.baseline.average)


def test_learned_baseline_needs_features():
    q, _ = BITS.q(2)
    with pytest.raises(ValueError, match="context=features"):
        ScoreFunction(1, "learned")(q, bumpy)


def test_a_learned_baseline_gets_the_gradient_of_its_own_error_and_no_other():
    estimator = ScoreFunction(2, "learned").double()
    q, _ = BITS.q(16)
    context = features(16)
    seen = []

    def f(z):
        seen.append(bumpy(z))
        return seen[-1]

    value = estimator(q, f, context=context).sum()
    estimator.eval()  # the error below is measured from the same moving average: none yet
    own = list(estimator.baseline.network.parameters())
    found = torch.autograd.grad(value, own)
    estimator.baseline.average.updates.zero_()
    estimator.baseline.average.average.zero_()
    _, error = estimator.baseline(seen[-1].detach(), context)
    for a, b in zip(found, torch.autograd.grad(error.sum(), own), strict=True):
        torch.testing.assert_close(a, b)
