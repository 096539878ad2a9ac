"""Coupled categorical samples: exact expectations over the joint, and the papers' formulas."""

import itertools

import pytest
import torch
from oracles import BITS, CODES, bumpy, gradient_samples, z_scores
from torch.distributions import Independent

from vae_lab.estimators import ARMS, ARSM, CARMS, ScoreFunction
from vae_lab.estimators.antithetic import coincidence, correction
from vae_lab.estimators.coupled import _pair_weight
from vae_lab.estimators.relaxations import gumbel

ROWS = 200_000
OneHot = CODES.family


def recorded(estimator, logits, f):
    logits = logits.clone().requires_grad_()
    seen = []
    q = Independent(OneHot(logits=logits, validate_args=False), 1, validate_args=False)
    torch.manual_seed(0)
    estimator(q, lambda z: seen.append(z) or f(z)).sum().backward()
    return seen[0], logits.grad


def two_categories(rows=40):
    """Bits as codes of two categories: the logit is that of the second category."""
    bits = torch.tensor(BITS.parameters["logits"], dtype=torch.float64).expand(rows, 3)
    return bits, torch.stack([torch.zeros_like(bits), bits], -1)


@pytest.mark.parametrize("num_samples", [2, 3, 5])
def test_carms_of_two_categories_is_arms(num_samples):
    bits, logits = two_categories()
    z, gradient = recorded(CARMS(num_samples), logits, lambda z: bumpy(z[..., 1]))
    bits = bits.clone().requires_grad_()
    q, seen = Independent(torch.distributions.Bernoulli(logits=bits), 1), []
    torch.manual_seed(0)
    ARMS(num_samples)(q, lambda z: seen.append(z) or bumpy(z)).sum().backward()
    assert torch.equal(z[..., 1], seen[0])
    torch.testing.assert_close(gradient[..., 1], bits.grad)
    torch.testing.assert_close(gradient[..., 0], -bits.grad)


def joint(log_stop, num_samples):
    """P(ranks i, j) by playing all the sticks of one variable, [K, K]."""
    stop = log_stop.exp()
    both = stop * coincidence(log_stop, num_samples)
    size = len(stop) + 1
    table = torch.zeros(size, size, dtype=torch.float64)
    for bits in itertools.product([(0, 0), (0, 1), (1, 0), (1, 1)], repeat=size - 1):
        chance = torch.ones((), dtype=torch.float64)
        rank = [0, 0]
        for stick, (a, b) in enumerate(bits):
            one, two = stop[stick], both[stick]
            chance = chance * {0: 1 - 2 * one + two, 1: one - two, 2: two}[a + b]
            rank = [stick + 1 if hit else old for hit, old in zip((a, b), rank, strict=True)]
        table[rank[0], rank[1]] += chance
    return table


def sticks(logits):
    logits = torch.tensor(logits, dtype=torch.float64).sort(descending=True).values
    return (logits - logits.logcumsumexp(-1))[1:], logits.softmax(-1)


LOGITS = [
    [0.5, -0.3, 0.1],
    [0.0, 0.0, 0.0, 0.0],
    [3.0, -2.0, 1.0, 0.5],
    [1.0, 1.0],
    [9.0, 8.0, -7.0],
]


@pytest.mark.parametrize("num_samples", [2, 3, 6])
@pytest.mark.parametrize("logits", LOGITS)
def test_pair_weight_is_the_importance_weight_of_the_joint(logits, num_samples):
    log_stop, pi = sticks(logits)
    table = joint(log_stop, num_samples)
    torch.testing.assert_close(table.sum(0), pi)
    weight = _pair_weight(log_stop, num_samples)
    for i, j in itertools.permutations(range(len(pi)), 2):
        torch.testing.assert_close(pi[i] * pi[j], table[i, j] * weight[max(i, j) - 1])


@pytest.mark.parametrize("num_samples", [2, 4])
@pytest.mark.parametrize("logits", LOGITS)
def test_expectation_of_carms_for_one_variable_is_exact(logits, num_samples):
    """Summed over all pairs, with the estimator's weights."""
    log_stop, pi = sticks(logits)
    eye = torch.eye(len(pi), dtype=torch.float64)
    f = bumpy(eye)
    weight = _pair_weight(log_stop, num_samples)
    table = joint(log_stop, num_samples)
    total = torch.zeros_like(pi)
    for i, j in itertools.permutations(range(len(pi)), 2):
        ratio = weight[max(i, j) - 1]
        total += table[i, j] * ratio * 0.5 * (f[i] - f[j]) * (eye[i] - eye[j])
    torch.testing.assert_close(total, pi * (f - (pi * f).sum()), rtol=0, atol=1e-10)


def test_weights_stay_bounded_for_any_logits():
    logits = 30 * torch.randn(500, 8, dtype=torch.float64)
    logits = torch.cat([logits, torch.zeros(1, 8, dtype=torch.float64)]).sort(-1, True).values
    log_stop = (logits - logits.logcumsumexp(-1))[..., 1:]
    for num_samples in (2, 3, 10):
        weight = _pair_weight(log_stop, num_samples)
        assert weight.min() >= 0.5 - 1e-12 and weight.max() < 2
        assert correction(log_stop, num_samples).max() <= 1


def test_unweighted_pairs_would_be_caught():
    """Negative control: without the importance weight the coupled pairs are biased."""
    log_stop, pi = sticks([0.5, -0.3, 0.1])
    eye, table = torch.eye(3, dtype=torch.float64), joint(log_stop, 2)
    f, total = bumpy(eye), torch.zeros_like(pi)
    for i, j in itertools.permutations(range(3), 2):
        total += table[i, j] * 0.5 * (f[i] - f[j]) * (eye[i] - eye[j])
    assert (total - pi * (f - (pi * f).sum())).abs().max() > 1e-2


def test_arsm_is_the_papers_formula():
    rows, logits = 7, torch.tensor(CODES.parameters["logits"], dtype=torch.float64)
    z, gradient = recorded(ARSM(), logits.expand(rows, 2, 3), lambda z: bumpy(z.flatten(-2)))
    assert len(z) == 4
    torch.manual_seed(0)
    noise = (-gumbel(torch.Size((rows, 2, 3)), logits)).exp()
    pi = noise / noise.sum(-1, keepdim=True)
    table = torch.empty(3, 3, rows, dtype=torch.float64)
    for m, j in itertools.product(range(3), repeat=2):
        swapped = pi.clone()
        swapped[..., m], swapped[..., j] = pi[..., j], pi[..., m]
        code = torch.nn.functional.one_hot((swapped.log() - logits).argmin(-1), 3).double()
        table[m, j] = bumpy(code.flatten(-2))
    centred = table - table.mean(0)
    expected = torch.einsum("cjr,rlj->rlc", centred, 1 / 3 - pi)
    torch.testing.assert_close(gradient, expected)


def test_arsm_of_two_categories_is_arm():
    bits, logits = two_categories()
    z, gradient = recorded(ARSM(), logits, lambda z: bumpy(z[..., 1]))
    torch.manual_seed(0)
    noise = (-gumbel(logits.shape, logits)).exp()
    u = noise[..., 0] / noise.sum(-1)  # the bit is one where the second of the two arrives first
    difference = bumpy((u > 1 - bits.sigmoid()).double()) - bumpy((u < bits.sigmoid()).double())
    torch.testing.assert_close(gradient[..., 1], difference.unsqueeze(-1) * (u - 0.5))


@pytest.mark.parametrize("estimator", [ARSM(), CARMS(2), CARMS(5)])
def test_samples_have_the_marginals_of_q(estimator):
    logits = torch.tensor(CODES.parameters["logits"], dtype=torch.float64)
    z, _ = recorded(estimator, logits.expand(50_000, 2, 3), lambda z: bumpy(z.flatten(-2)))
    for sample in z:
        assert z_scores(sample, logits.softmax(-1)).abs().max() < 4


def test_variance_ranking_at_equal_cost():
    def variance(estimator):
        _, samples = gradient_samples(estimator, CODES, bumpy, ROWS)
        return samples["logits"].var(0).sum()

    assert variance(CARMS(2)) < variance(ScoreFunction(2))
    assert variance(CARMS(4)) < variance(ScoreFunction(4))
    assert variance(ARSM()) < variance(ScoreFunction(2))


@pytest.mark.parametrize("estimator", [ARSM(), CARMS(2), CARMS(4)])
def test_any_logit_gives_a_finite_gradient(estimator):
    size = torch.tensor([0.0, 100.0, 500.0]).repeat(500).reshape(-1, 1, 1)
    logits = size * torch.randn(1500, 2, 5).sign()
    _, gradient = recorded(estimator, logits, lambda z: z.square().sum((-1, -2)) + z[..., 0, 1])
    assert gradient.isfinite().all()
