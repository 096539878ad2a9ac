"""Antithetic bits: the identities between ARM, DisARM and ARMS, and their exact expectations."""

import itertools

import pytest
import torch
from oracles import BITS, bumpy, gradient_samples, z_scores
from torch.distributions import Bernoulli, Independent

from vae_lab.aggregates import log_mean_exp
from vae_lab.estimators import ARM, ARMS, DisARM, Exact, ScoreFunction
from vae_lab.estimators.antithetic import coincidence, correction, exclusive_bits

ROWS = 200_000
P = torch.tensor(BITS.parameters["logits"], dtype=torch.float64).sigmoid()


def recorded(estimator, seed=0, rows=50, f=bumpy, **kwargs):
    """The points that the estimator chose and its gradient, [S, rows, D] and [rows, D]."""
    q, leaves = BITS.q(rows)
    seen = []
    torch.manual_seed(seed)
    estimator(q, lambda z: seen.append(z) or f(z), **kwargs).sum().backward()
    return seen[0], leaves["logits"].grad


def exact_gradient(num_samples=1, **kwargs):
    q, leaves = BITS.q()
    value = Exact(num_samples)(q, bumpy, **kwargs)
    return torch.autograd.grad(value, leaves["logits"])[0]


def test_arm_is_the_papers_formula():
    _, gradient = recorded(ARM())
    torch.manual_seed(0)
    u = torch.rand(1, 50, 3, dtype=torch.float64)[0]
    difference = bumpy((u > 1 - P).double()) - bumpy((u < P).double())
    torch.testing.assert_close(gradient, difference.unsqueeze(-1) * (u - 0.5))


def test_disarm_is_the_papers_formula():
    (b1, b2), gradient = recorded(DisARM())
    sign = (-1.0) ** b2 * (b1 != b2)
    rate = torch.tensor(BITS.parameters["logits"], dtype=torch.float64).abs().sigmoid()
    difference = (bumpy(b1) - bumpy(b2)).unsqueeze(-1)
    torch.testing.assert_close(gradient, 0.5 * difference * sign * rate)


def test_disarm_is_the_expectation_of_arm_given_the_pair():
    """Given the pair, u is uniform on an interval: its expectation is the interval's middle."""
    edges = torch.stack([torch.minimum(P, 1 - P), torch.maximum(P, 1 - P)])
    lower = torch.stack([torch.zeros(3), edges[0], edges[1]])
    upper = torch.stack([edges[0], edges[1], torch.ones(3)])
    middle = (lower + upper) / 2
    u = middle[torch.cartesian_prod(*[torch.arange(3)] * 3), torch.arange(3)]  # [27, 3]
    b1, b2 = (u > 1 - P).double(), (u < P).double()
    difference = (bumpy(b1) - bumpy(b2)).unsqueeze(-1)
    arm = difference * (u - 0.5)
    disarm = 0.5 * difference * (b1 - b2) * torch.maximum(P, 1 - P)
    torch.testing.assert_close(arm, disarm)
    weight = (upper - lower)[torch.cartesian_prod(*[torch.arange(3)] * 3), torch.arange(3)].prod(-1)
    expectation = (weight.unsqueeze(-1) * disarm).sum(0)
    torch.testing.assert_close(expectation, exact_gradient(), rtol=0, atol=1e-10)


def test_sigmoid_of_the_logit_instead_of_its_size_would_be_caught():
    class Wrong(DisARM):
        def weight(self, u, difference, logits):
            return 0.5 * difference * logits.sigmoid()

    _, samples = gradient_samples(Wrong(), BITS, bumpy, ROWS)
    assert z_scores(samples["logits"], exact_gradient()).abs().max() > 10


@pytest.mark.parametrize("estimator", [ARM(3), DisARM(3)], ids=["ARM", "DisARM"])
def test_several_pairs_are_the_average_of_single_pairs(estimator):
    z, gradient = recorded(estimator)
    torch.manual_seed(0)
    u = torch.rand(3, 50, 3, dtype=torch.float64)
    b, partner = z[:3], z[3:]
    logits = torch.tensor(BITS.parameters["logits"], dtype=torch.float64)
    difference = (bumpy(b) - bumpy(partner)).unsqueeze(-1)
    expected = (difference * estimator.weight(u, b - partner, logits)).mean(0)
    torch.testing.assert_close(gradient, expected)


def test_local_disarm_of_one_sample_is_disarm_of_the_bound():
    _, mean = recorded(DisARM(1))
    _, bound = recorded(DisARM(1), aggregate=log_mean_exp)
    torch.testing.assert_close(mean, bound)


def one_half(here, there):
    """Local DisARM of one half of the pairs, sample by sample."""
    f, other = bumpy(here), bumpy(there)
    total = torch.zeros_like(here[0])
    for s in range(len(here)):
        changed = f.clone()
        changed[s] = other[s]
        lost = log_mean_exp(f) - log_mean_exp(changed)
        total = total + lost.unsqueeze(-1) * 0.5 * (here[s] - there[s]) * torch.maximum(P, 1 - P)
    return total


def test_local_disarm_exchanges_one_sample_at_a_time_in_each_half():
    z, gradient = recorded(DisARM(2), aggregate=log_mean_exp)
    expected = 0.5 * (one_half(z[:2], z[2:]) + one_half(z[2:], z[:2]))
    torch.testing.assert_close(gradient, expected)


def test_crediting_both_halves_lowers_the_variance_of_a_bound():
    z, both = recorded(DisARM(2), rows=ROWS, aggregate=log_mean_exp)
    one = one_half(z[:2], z[2:])
    _, vimco = recorded(ScoreFunction(2), rows=ROWS, aggregate=log_mean_exp)
    assert z_scores(one, exact_gradient(2, aggregate=log_mean_exp)).abs().max() < 4
    assert both.var(0).sum() < one.var(0).sum() < vimco.var(0).sum()


def test_two_arms_are_disarm():
    z, gradient = recorded(ARMS(2))
    difference = (bumpy(z[0]) - bumpy(z[1])).unsqueeze(-1)
    expected = 0.5 * difference * (z[0] - z[1]) * torch.maximum(P, 1 - P)
    torch.testing.assert_close(gradient, expected)
    assert not ((z[0] == z[1]) & (z[0] == (P < 0.5))).any()  # the rarer value never comes twice


def test_arms_is_the_papers_formula():
    z, gradient = recorded(ARMS(5))
    rare = torch.minimum(P, 1 - P)
    joint = (2 * rare ** (1 / 4) - 1).clamp_min(0) ** 4
    rho = torch.where(P < 0.5, joint, 2 * P - 1 + joint)
    f = bumpy(z)
    covariance = ((f - f.mean(0)).unsqueeze(-1) * (z - P)).sum(0) / 4
    torch.testing.assert_close(gradient, covariance * P * (1 - P) / (P - rho))


@pytest.mark.parametrize("num_samples", [2, 3, 4, 8])
@pytest.mark.parametrize("p", [0.03, 0.4, 0.5])
def test_exclusive_bits_have_their_marginals_and_their_coincidences(num_samples, p):
    log_p = torch.full((ROWS,), p, dtype=torch.float64).log()
    bits = exclusive_bits(log_p, num_samples).double()
    for bit in bits:
        assert z_scores(bit, p).abs() < 4
    pairs = [a * b for a, b in itertools.combinations(bits, 2)]
    both = p * coincidence(log_p[0], num_samples)
    assert both < p * p
    assert z_scores(torch.stack(pairs).mean(0), both).abs() < 4


def test_many_exclusive_bits_become_independent():
    log_p = torch.tensor(0.4, dtype=torch.float64).log()
    assert correction(log_p, 2) == pytest.approx(0.6)
    assert correction(log_p, 100_000) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("estimator", [ARM(2), DisARM(2), ARMS(2), ARMS(4)])
def test_any_logit_gives_a_finite_gradient(estimator):
    logits = torch.tensor([-500.0, -90.0, 0.0, 90.0, 500.0]).repeat(1000)
    logits = logits.unsqueeze(-1).expand(-1, 3).clone().requires_grad_()
    q = Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)
    estimator(q, bumpy).sum().backward()
    assert logits.grad.isfinite().all()


def test_variance_ranking_at_equal_cost():
    """Two evaluations: leave-one-out > ARM > DisARM; four: DisARM > ARMS."""

    def variance(estimator):
        _, samples = gradient_samples(estimator, BITS, bumpy, ROWS)
        return samples["logits"].var(0).sum().item()

    score, arm, disarm = variance(ScoreFunction(2)), variance(ARM()), variance(DisARM())
    assert score > arm > disarm
    assert disarm / 2 == pytest.approx(variance(DisARM(2)), rel=0.02)
    assert variance(ScoreFunction(4)) > variance(ARMS(4))
    assert variance(DisARM(2)) > variance(ARMS(4))
