"""What a score function's credit is compared with."""

import pytest
import torch
from oracles import BITS

from vae_lab.estimators import ScoreFunction


def features(rows):
    return torch.randn(rows, 3, dtype=torch.float64)


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
