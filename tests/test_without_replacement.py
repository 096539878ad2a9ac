"""Sampling without replacement: every probability against an enumeration of sets and orders."""

import itertools
import math

import pytest
import torch
from oracles import BITS, CODES, Case, bumpy, gradient_samples
from torch.distributions import Bernoulli, Independent
from torch.utils._python_dispatch import TorchDispatchMode

from vae_lab.distributions import OneHotCategorical
from vae_lab.estimators import ScoreFunction, SumAndSample, UnorderedSet
from vae_lab.estimators.distinct import draw_distinct, draw_outside, most_probable
from vae_lab.estimators.without_replacement import set_weights

ROWS = 20_000
PI = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=torch.float64)  # 2 variables, 3 values
STATES = torch.cartesian_prod(torch.arange(3), torch.arange(3))
P = PI[0, STATES[:, 0]] * PI[1, STATES[:, 1]]  # [9]


def ordered_probability(order, p):
    chance, rest = 1.0, p.sum()
    for state in order:
        chance, rest = chance * p[state] / rest, rest - p[state]
    return chance


def set_probability(states, p):
    """P(S), summed over the orders, with the domain's mass as p gives it."""
    return sum(ordered_probability(order, p) for order in itertools.permutations(states))


def without(p, *states):
    p = p.clone()
    p[list(states)] = 0
    return p


def papers_weights(states, p, f):
    """p(s) R(S, s) and B(S, s) by the definitions."""
    whole = set_probability(states, p)
    weights, baselines = [], []
    for s in states:
        others = [t for t in states if t != s]
        alone = set_probability(others, without(p, s))
        weights.append(p[s] * alone / whole)
        baseline = p[s] * f[s]
        for t in others:
            rest = [u for u in others if u != t]
            baseline += p[t] * set_probability(rest, without(p, s, t)) / alone * f[t]
        baselines.append(baseline)
    return torch.stack(weights), torch.stack(baselines)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_weights_and_baselines_are_the_papers(size):
    f = bumpy(torch.randn(9, 4, dtype=torch.float64))
    for states in itertools.combinations(range(9), size):
        index = list(states)
        weight, baseline = set_weights(P[index].log(), f[index])
        expected = papers_weights(states, P, f)
        torch.testing.assert_close(weight, expected[0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(baseline, expected[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [2, 3])
def test_expectation_over_all_sets_is_exact(size):
    """Value and gradient, summed over every set with its probability, for a q of 9 states."""
    logits = P.log().clone().requires_grad_()
    f = bumpy(torch.randn(9, 4, dtype=torch.float64))
    exact = (logits.softmax(0) * f).sum()
    (exact_gradient,) = torch.autograd.grad(exact, logits)
    value, gradient = 0.0, torch.zeros(9, dtype=torch.float64)
    for states in itertools.combinations(range(9), size):
        index = list(states)
        chance = set_probability(states, P)
        weight, baseline = set_weights(P[index].log(), f[index])
        value += chance * (weight * f[index]).sum()
        score = torch.eye(9, dtype=torch.float64)[index] - P
        gradient += chance * ((weight * (f[index] - baseline)).unsqueeze(-1) * score).sum(0)
    torch.testing.assert_close(value, exact.detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(gradient, exact_gradient, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-3)])
@pytest.mark.parametrize(
    "p", [[0.9, 0.09, 0.009], [1e-4, 1e-5, 2e-3], [0.4, 0.3, 0.2, 0.0999], [0.5, 1e-6], [1e-9] * 4]
)
def test_weights_hold_over_many_orders_of_magnitude(p, dtype, tolerance):
    p = torch.tensor([*p, 1 - sum(p)], dtype=torch.float64)
    states = tuple(range(len(p) - 1))
    f = torch.linspace(-1, 2, len(p), dtype=torch.float64)
    weight, baseline = set_weights(p[:-1].to(dtype).log(), f[:-1].to(dtype))
    expected = papers_weights(states, p, f)
    torch.testing.assert_close(weight.double(), expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(baseline.double(), expected[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [2, 4, 16, 24, 64, 256])
def test_of_rare_states_each_weighs_the_same(size):
    """And is compared with the mean of the others: 1 / k and leave-one-out, for k of 2^200."""
    log_p = torch.full((size,), -200 * math.log(2), dtype=torch.float64)
    f = torch.randn(size, dtype=torch.float64)
    weight, baseline = set_weights(log_p, f)
    torch.testing.assert_close(weight, torch.full_like(f, 1 / size), rtol=1e-8, atol=0)
    torch.testing.assert_close(baseline, (f.sum() - f) / (size - 1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [6, 30, 200])
def test_any_number_of_states_weighs_as_much_as_all(size):
    """A constant f is known from any set: the weights add up to one."""
    p = torch.rand(size, dtype=torch.float64) ** 4
    p = 0.6 * p / p.sum()
    weight, baseline = set_weights(p.log(), torch.ones_like(p))
    assert weight.sum().item() == pytest.approx(1, abs=1e-8)
    torch.testing.assert_close(baseline, torch.ones_like(p), rtol=0, atol=1e-8)


def test_the_baseline_of_the_set_as_a_whole_would_be_caught():
    """Negative control: a baseline that forgets to leave s out of the domain is biased."""
    f = bumpy(torch.randn(9, 4, dtype=torch.float64))
    exact = P * (f - (P * f).sum())
    gradient = torch.zeros(9, dtype=torch.float64)
    for states in itertools.combinations(range(9), 2):
        index = list(states)
        weight, _ = set_weights(P[index].log(), f[index])
        credit = weight * (f[index] - (weight * f[index]).sum())
        score = torch.eye(9, dtype=torch.float64)[index] - P
        gradient += set_probability(states, P) * (credit.unsqueeze(-1) * score).sum(0)
    assert (gradient - exact).abs().max() > 1e-3


BIT_PI = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
DEEP_PI = torch.cat([PI, PI.roll(1, -1)[:1]])  # 27 states


def states_of(pi):
    """All of them, [n, L], and their probabilities."""
    states = torch.cartesian_prod(*[torch.arange(pi.shape[-1])] * len(pi))
    return states, pi[torch.arange(len(pi)), states].prod(-1)


def code(states, categories=3):
    """The place of states [*, L] in that list."""
    return (states * categories ** torch.arange(states.shape[-1]).flip(0)).sum(-1)


@pytest.mark.parametrize("pi", [PI, BIT_PI], ids=["codes", "bits"])
def test_draws_are_without_replacement(pi):
    all_states, p = states_of(pi)
    states, log_p = draw_distinct(pi.log().expand(ROWS, *pi.shape), 3)
    drawn, n = code(states, pi.shape[-1]), len(all_states)  # [3, rows]
    torch.testing.assert_close(log_p, p.log()[drawn])
    counts = torch.zeros(n, n, n, dtype=torch.float64)
    counts.index_put_(tuple(drawn), torch.ones(ROWS, dtype=torch.float64), accumulate=True)
    for order in itertools.product(range(n), repeat=3):
        distinct = len(set(order)) == 3
        chance = float(ordered_probability(order, p)) if distinct else 0.0
        error = (chance * (1 - chance) / ROWS) ** 0.5
        assert abs(counts[order] / ROWS - chance) <= 5 * error


@pytest.mark.parametrize("variables", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_the_most_probable_states_are_found(size, variables):
    log_pi = torch.randn(20, variables, 3, dtype=torch.float64).log_softmax(-1)
    states = torch.cartesian_prod(*[torch.arange(3)] * variables).reshape(-1, variables)
    everything = log_pi[:, torch.arange(variables), states].sum(-1)  # [20, states]
    size = min(size, len(states))
    best = everything.topk(size)
    found, log_p = most_probable(log_pi, size)
    assert torch.equal(found.movedim(0, 1), states[best.indices])
    torch.testing.assert_close(log_p.T, best.values)


def test_equally_probable_states_are_not_taken_twice():
    states, log_p = most_probable(torch.full((3, 7, 2), -math.log(2)), 40)
    torch.testing.assert_close(log_p, torch.full_like(log_p, -7 * math.log(2)))
    for row in states.unbind(1):
        assert len(row.unique(dim=0)) == 40


@pytest.mark.parametrize("pi", [PI, BIT_PI, DEEP_PI], ids=["codes", "bits", "deep"])
@pytest.mark.parametrize("share", [0.0, 0.45, 1.0])
def test_samples_outside_follow_the_rest_of_q(pi, share):
    all_states, p = states_of(pi)
    n = len(all_states)
    inside = torch.randperm(n)[: 1 + int(share * (n - 3))]
    seen = all_states[inside].unsqueeze(1).expand(-1, ROWS, -1)
    rest = without(p, *inside.tolist())
    rest = rest / rest.sum()
    outside = code(draw_outside(seen, pi.log().expand(ROWS, *pi.shape), 2), pi.shape[-1])
    for sample in outside:
        frequency = torch.bincount(sample, minlength=n) / ROWS
        assert ((frequency - rest).abs() <= 5 * (rest * (1 - rest) / ROWS).sqrt()).all()
    both = torch.bincount(outside[0] * n + outside[1], minlength=n * n).reshape(n, n) / ROWS
    expected = torch.outer(rest, rest)
    assert ((both - expected).abs() <= 5 * (expected / ROWS).sqrt() + 1 / ROWS).all()


FOUR_OF_NINE = Case(
    "ruled out", OneHotCategorical, {"logits": [[0.5, -math.inf, 0.1], [-1.0, 0.2, -math.inf]]}, 2
)


@pytest.mark.parametrize("case", [BITS, CODES, FOUR_OF_NINE], ids=lambda c: c.name)
def test_all_states_give_the_exact_gradient(case):
    """Also if more than all of them are asked for, or more than are possible."""
    value, (exact,) = case.exact_gradient(bumpy)
    states = len(case.states())
    for estimator in (UnorderedSet(states), UnorderedSet(20), SumAndSample(20)):
        values, samples = gradient_samples(estimator, case, bumpy, 3)
        torch.testing.assert_close(values, torch.full_like(values, value))
        torch.testing.assert_close(samples["logits"], exact.expand_as(samples["logits"]))


@pytest.mark.parametrize("case", [BITS, CODES], ids=lambda c: c.name)
def test_variance_is_below_that_of_independent_samples(case):
    def variance(estimator):
        _, samples = gradient_samples(estimator, case, bumpy, ROWS)
        return samples["logits"].var(0).sum().item()

    assert variance(UnorderedSet(2)) < variance(ScoreFunction(2))
    assert variance(UnorderedSet(4)) < variance(ScoreFunction(4))
    falling = [variance(SumAndSample(k)) for k in (1, 3, 5, 6)]
    assert falling == sorted(falling, reverse=True)
    assert variance(SumAndSample(3, 4)) == pytest.approx(variance(SumAndSample(3)) / 4, rel=0.1)


@pytest.mark.parametrize("estimator", [UnorderedSet(4), SumAndSample(3, 2)])
def test_hundreds_of_bits(estimator):
    logits = (4 * torch.randn(5, 200)).requires_grad_()
    q = Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)
    seen = []
    value = estimator(q, lambda z: seen.append(z) or z.mean(-1))
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()
    for row in seen[0].unbind(1):
        assert len(row.unique(dim=0)) >= min(4, len(row) - 1)


class Work(TorchDispatchMode):
    """Counts the numbers that all operations inside make."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        for value, declared in zip(results, function._schema.returns):  # noqa: B905
            if isinstance(value, torch.Tensor) and declared.alias_info is None:  # no view
                self.numbers += value.numel()
        return result


@pytest.mark.parametrize("make", [UnorderedSet, SumAndSample])
def test_a_step_grows_with_the_number_of_states_and_not_with_its_square(make):
    def work(size):
        q = Independent(Bernoulli(logits=torch.randn(3, 200), validate_args=False), 1)
        with Work() as done:
            make(size)(q, lambda z: z.mean(-1))
        return done.numbers

    assert work(32) < 6 * work(8)
