"""Count latents, and the estimator made for them."""

import pytest
import torch
from oracles import COUNTS, bumpy, gradient_samples, z_scores
from torch.distributions import Poisson as PoissonDistribution

from vae_lab.estimators import Fini, MeasureValued, ScoreFunction
from vae_lab.latents import Poisson

COUNT = torch.arange(400, dtype=torch.float64)


def exact_slope(rate, f):
    """d E f(z) / d log rate, by summation over the probabilities."""
    rate = torch.tensor(rate, dtype=torch.float64)
    probability = PoissonDistribution(rate).log_prob(COUNT).exp()
    return (probability * (COUNT - rate) * f(COUNT)).sum().item()


def expected_slope(estimator, rate, f):
    """E[w(z) f'(z)], the mean of what the estimator says."""
    rate = torch.tensor(rate, dtype=torch.float64)
    z = COUNT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(z).sum(), z)
    weight = estimator.weight(COUNT, rate)
    return (PoissonDistribution(rate).log_prob(COUNT).exp() * weight * slope).sum().item()


@pytest.mark.parametrize("rate", [0.05, 0.9, 7.0])
@pytest.mark.parametrize("degree", [2, 3])
def test_fini_is_exact_up_to_its_degree_and_no_further(degree, rate):
    for power in range(degree + 1):
        exact = exact_slope(rate, lambda z, n=power: z**n)
        got = expected_slope(Fini(degree), rate, lambda z, n=power: z**n)
        assert got == pytest.approx(exact, rel=1e-10, abs=1e-12)
    too_high = exact_slope(rate, lambda z: z ** (degree + 1))
    got = expected_slope(Fini(degree), rate, lambda z: z ** (degree + 1))
    assert abs(got / too_high - 1) > 1e-4


@pytest.mark.parametrize("degree", [2, 3])
def test_fini_needs_a_low_degree_in_each_count_only(degree):
    """z_1^n sin(z_2): of degree n in the first count, of none in the second."""

    def f(z):
        return z[..., 0] ** degree * torch.sin(z[..., 1])

    _, (exact,) = COUNTS.exact_gradient(f)
    _, samples = gradient_samples(Fini(degree), COUNTS, f, 200_000)
    assert z_scores(samples["rate"], exact)[0].abs() < 4


def test_the_gradient_is_the_weight_times_the_slope():
    for degree in (2, 3):
        q, leaves = COUNTS.q(20)
        seen = []

        def f(z, seen=seen):
            z.retain_grad()
            seen.append(z)
            return bumpy(z)

        estimator = Fini(degree)
        estimator(q, f).sum().backward()
        rate = leaves["rate"].detach()
        expected = estimator.weight(seen[0][0].detach(), rate) * seen[0].grad[0] / rate
        torch.testing.assert_close(leaves["rate"].grad, expected)


def test_more_degrees_less_bias_on_a_smooth_f():
    errors = []
    for degree in (2, 3):
        f = lambda z: torch.exp(-0.3 * z)  # noqa: E731
        errors.append(abs(expected_slope(Fini(degree), 2.0, f) - exact_slope(2.0, f)))
    assert errors[1] < 0.3 * errors[0]


def test_measure_valued_counts_have_less_variance_than_the_score_function():
    _, measure = gradient_samples(MeasureValued(), COUNTS, bumpy, 50_000)
    _, score = gradient_samples(ScoreFunction(3), COUNTS, bumpy, 50_000)
    assert measure["rate"].var(0).sum() < score["rate"].var(0).sum()


def test_the_mode_is_the_most_probable_count():
    latent = Poisson(5)
    q = latent.distribution(torch.tensor([[-3.0, -0.2, 0.3, 1.7, 3.1]]))
    counts = torch.arange(60.0).reshape(-1, 1, 1).expand(-1, 1, 5)
    assert torch.equal(latent.mode(q), q.base_dist.log_prob(counts).argmax(0).float())


def test_a_path_is_of_counts_and_monotone():
    z0, z1 = torch.tensor([[0.0, 7.0, 3.0]]), torch.tensor([[5.0, 1.0, 3.0]])
    path = Poisson(3).interpolate(z0, z1, 9)
    assert path.shape == (9, 1, 3)
    assert torch.equal(path[0], z0) and torch.equal(path[-1], z1)
    assert torch.equal(path, path.round())
    steps = path.diff(dim=0) * (z1 - z0).sign()
    assert steps.min() >= 0 and path[:, 0, 2].unique().tolist() == [3.0]


@pytest.mark.parametrize("log_rate", [-30.0, 10.0])
@pytest.mark.parametrize("estimator", [ScoreFunction(), Fini(2), Fini(3), MeasureValued()])
def test_extreme_rates_stay_finite(estimator, log_rate):
    latent = Poisson(3)
    parameters = torch.full((8, 3), log_rate, requires_grad=True)
    q = latent.distribution(parameters)
    value = estimator(q, lambda z: torch.tanh(z).sum(-1)) - latent.kl(q).sum(-1)
    value.sum().backward()
    assert value.isfinite().all() and parameters.grad.isfinite().all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="degree must be 2 or 3, got 4"):
        Fini(4)
    with pytest.raises(ValueError, match="latents must be at least 1, got 0"):
        Poisson(0)
