"""MuProp: its formula, what it does to a linear f, and what it asks of f."""

import pytest
import torch
from oracles import BITS, CASES, CODES, bumpy, gradient_samples, linear, z_scores

from vae_lab.estimators import MuProp, ScoreFunction


def test_gradient_is_the_papers_formula():
    q, leaves = BITS.q(30)
    seen = []
    MuProp(1)(q, lambda z: seen.append(z) or bumpy(z)).sum().backward()
    z, mean = seen[0].detach()
    p = leaves["logits"].detach().sigmoid()
    torch.testing.assert_close(mean, p)
    point = mean.clone().requires_grad_()
    (slope,) = torch.autograd.grad(bumpy(point).sum(), point)
    remainder = bumpy(z) - bumpy(mean) - (slope * (z - mean)).sum(-1)
    expected = remainder.unsqueeze(-1) * (z - p) + slope * p * (1 - p)
    torch.testing.assert_close(leaves["logits"].grad, expected)


@pytest.mark.parametrize(
    "case", [case for case in CASES if MuProp.accepts(case.q()[0])], ids=lambda c: c.name
)
def test_a_linear_f_leaves_no_variance(case):
    _, exact = case.exact_gradient(linear)
    _, samples = gradient_samples(MuProp(), case, linear, 20)
    for sample, expected in zip(samples.values(), exact, strict=True):
        torch.testing.assert_close(sample, expected.expand_as(sample))


@pytest.mark.parametrize("case", [BITS, CODES], ids=lambda c: c.name)
def test_variance_is_below_that_of_no_control_variate(case):
    def variance(estimator):
        _, samples = gradient_samples(estimator, case, linear, 20_000)
        return samples["logits"].var(0).sum()

    assert variance(MuProp(1)) < 1e-20 < variance(ScoreFunction(1, "none"))


def test_the_mean_itself_does_not_train_f():
    """f's own parameters see the samples alone: the mean is no point of the model."""
    q, _ = BITS.q(50)
    scale = torch.ones(3, 50, dtype=torch.float64, requires_grad=True)
    MuProp(2)(q, lambda z: scale * bumpy(z)).sum().backward()
    assert (scale.grad[:2] != 0).all() and (scale.grad[2] == 0).all()


def test_forgotten_expansion_would_be_caught():
    class Forgotten(MuProp):
        def estimate(self, q, f, aggregate, context):
            value = super().estimate(q, f, aggregate, context)
            mean = q.mean
            return value - (f(mean.unsqueeze(0))[0] - f(mean.detach().unsqueeze(0))[0])

    _, (exact,) = BITS.exact_gradient(bumpy)
    _, samples = gradient_samples(Forgotten(), BITS, bumpy, 100_000)
    assert z_scores(samples["logits"], exact).abs().max() > 10


def test_values_without_gradients():
    q, _ = BITS.q(10)
    with torch.no_grad():
        assert MuProp(3)(q, bumpy).shape == (10,)
