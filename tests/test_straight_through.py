"""Straight-through estimators: identities between them, and their exact means."""

import math

import pytest
import torch
from oracles import BITS, CODES, bumpy, gradient_samples, linear, quadratic, z_scores
from torch.distributions import Bernoulli, Independent

from vae_lab.estimators import (
    DecoupledSTGumbelSoftmax,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    ReinMax,
    StraightThrough,
)
from vae_lab.estimators.rao_blackwell import perturbed_given
from vae_lab.estimators.relaxations import gumbel, harden, squash
from vae_lab.estimators.straight_through import expected_gap, moved

ROWS = 60_000
DISCRETE = pytest.mark.parametrize("case", [BITS, CODES], ids=lambda c: c.name)
EXACT_SAMPLES = [GappedStraightThrough(), GappedStraightThrough(gap="expected"), GumbelRao()]
EXACT_SAMPLES += [ReinMax(1.3), GumbelSoftmax(0.5, hard=True)]


def traced(estimator, case, f, rows):
    """The sample z, g = df/dz there, and the gradient of the logits."""
    q, leaves = case.q(rows)
    seen = []

    def watched(z):
        z.retain_grad()
        seen.append(z)
        return case.flat(f)(z)

    estimator(q, watched).sum().backward()
    return seen[0][0].detach(), seen[0].grad[0], leaves["logits"]


def codes(logits):
    return CODES.family(logits=logits, validate_args=False)


def jacobian(p, g):
    return p * g - p * (p * g).sum(-1, keepdim=True)


def test_reinmax_at_temperature_one_is_zgr_sample_by_sample():
    x, g, logits = traced(ReinMax(), CODES, bumpy, 50)
    pi = logits.softmax(-1).detach()
    zgr = 0.5 * jacobian(pi, g) + 0.5 * (x - pi) * ((x - pi) * g).sum(-1, keepdim=True)
    torch.testing.assert_close(logits.grad, zgr, rtol=0, atol=1e-14)


def test_reinmax_of_bits_is_that_of_two_classes():
    x, g, logits = traced(ReinMax(), BITS, bumpy, 50)
    p = logits.sigmoid().detach()
    zgr = 0.5 * p * (1 - p) * g + 0.5 * (x - p).square() * g
    torch.testing.assert_close(logits.grad, zgr, rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_reinmax_is_the_papers_formula(temperature):
    x, g, logits = traced(ReinMax(temperature), CODES, bumpy, 50)
    midpoint = 0.5 * (x + (logits / temperature).softmax(-1)).detach()
    heun = 2 * jacobian(midpoint, g) - 0.5 * jacobian(logits.softmax(-1).detach(), g)
    torch.testing.assert_close(logits.grad, heun, rtol=0, atol=1e-14)


def enumerated_mean(estimator, case, f):
    """The estimator's expected gradient, for one whose only noise is the sample itself."""
    states = case.states()
    q, leaves = case.q(len(states))
    z = states.clone().requires_grad_()
    (g,) = torch.autograd.grad(case.flat(f)(z).sum(), z)
    gradient = (estimator.stand_in(q.base_dist, states) * g).flatten(1).sum(-1)
    weights = q.log_prob(states).exp().detach()
    (mean,) = torch.autograd.grad((weights * gradient).sum(), leaves["logits"])
    return mean.sum(0)


@DISCRETE
def test_reinmax_is_exact_for_quadratic_f_and_for_no_other(case):
    def error(estimator, f):
        _, (exact,) = case.exact_gradient(f)
        return (enumerated_mean(estimator, case, f) - exact).abs().max()

    assert error(ReinMax(), linear) < 1e-12
    assert error(ReinMax(), quadratic) < 1e-12
    assert error(ReinMax(), bumpy) > 5e-3
    assert error(ReinMax(1.3), quadratic) > 5e-3
    assert error(GappedStraightThrough(), linear) > 5e-3


class WithNoise(ReinMax):
    """ReinMax beside Gumbel-Softmax at its midpoint, and the mean of that given the sample."""

    def relaxed(self, q, x, count):
        midpoint = codes((0.5 * (x + q.probs)).detach().log())
        return moved(q, perturbed_given(midpoint, x, count)).softmax(-1).mean(0)


class WithGumbelControl(WithNoise):
    def stand_in(self, q, x):
        return super().stand_in(q, x) + self.relaxed(q, x, 20) - self.relaxed(q, x, 1)


class WithGumbelRao(WithNoise):
    def stand_in(self, q, x):
        return 2 * self.relaxed(q, x, 20) - 0.5 * squash(q, q.logits)


@pytest.mark.parametrize("f", [linear, bumpy])
def test_averaging_gumbel_noise_away_does_not_help_reinmax(f):
    """As docs/estimators.md says: given the sample nothing in ReinMax is noise."""
    mean = enumerated_mean(ReinMax(), CODES, f)
    plain, control, rao = (
        gradient_samples(estimator, CODES, f, 20_000)[1]["logits"]
        for estimator in (ReinMax(), WithGumbelControl(), WithGumbelRao())
    )
    assert z_scores(control, mean).abs().max() < 4
    assert control.var(0).sum() > 1.2 * plain.var(0).sum()
    assert z_scores(rao, mean).abs().max() > 50


def test_reinmax_declares_its_bias_at_other_temperatures():
    assert ReinMax().unbiased == ReinMax.unbiased == "quadratic f"
    assert ReinMax(1.3).unbiased is False


def test_gapped_logits_put_the_sample_first_by_the_gap():
    q = CODES.q(200)[0]
    x = q.sample()
    for gap in (0.7, 3.0):
        y = GappedStraightThrough(gap=gap).stand_in(q.base_dist, x).detach().log()
        first = (y * x).sum(-1)
        second = y.masked_fill(x > 0, -math.inf).amax(-1)
        assert (first - second).min() > gap - 1e-12
        torch.testing.assert_close(first - second, (first - second).clamp_min(gap))


def test_expected_gap_is_that_of_gumbel_noise():
    logits = torch.tensor([0.5, -1.0, 0.2, -4.0], dtype=torch.float64)
    perturbed = logits + gumbel(torch.Size((1_000_000, 4)), logits)
    top, order = perturbed.topk(2, -1)
    for k in range(4):
        gaps = (top[:, 0] - top[:, 1])[order[:, 0] == k]
        expected = expected_gap(codes(logits), torch.eye(4, dtype=torch.float64)[k])
        assert z_scores(gaps, expected).abs() < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expected_gap_keeps_its_limits(dtype):
    """A certain class leaves -log(1 - pi), a hopeless one a gap of 1."""
    logits = torch.tensor([30.0, -30.0], dtype=dtype)
    gaps = torch.stack([expected_gap(codes(logits), x)[0] for x in torch.eye(2, dtype=dtype)])
    torch.testing.assert_close(gaps, torch.tensor([60.0, 1.0], dtype=dtype))


@pytest.mark.parametrize("gap", [0.0, 1.0, "expected"])
@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_a_gapped_bit_is_two_gapped_classes(bit, gap):
    logit = torch.linspace(-4, 4, 17, dtype=torch.float64).requires_grad_()
    estimator = GappedStraightThrough(0.7, gap)
    x = torch.full_like(logit, bit)
    pair = codes(torch.stack([torch.zeros_like(logit), logit], -1))
    one = estimator.stand_in(Bernoulli(logits=logit), x)
    two = estimator.stand_in(pair, torch.stack([1 - x, x], -1))[..., 1]
    slopes = [torch.autograd.grad(y.sum(), logit)[0] for y in (one, two)]
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(one, two)


def test_conditional_gumbels_are_gumbels_that_lead_to_the_sample():
    logits = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    free = gumbel(torch.Size((400_000, 3)), logits)
    winner = (logits + free).argmax(-1)
    for k in range(3):
        x = torch.eye(3, dtype=torch.float64)[k].unsqueeze(0)
        conditional = perturbed_given(codes(logits), x, 100_000)[:, 0] - logits.log_softmax(-1)
        assert ((logits + conditional).argmax(-1) == k).all()
        rejected = free[winner == k]
        for moment in (lambda g: g, lambda g: g.square(), lambda g: g * g.roll(1, -1)):
            a, b = moment(conditional), moment(rejected)
            error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
            assert ((a.mean(0) - b.mean(0)) / error).abs().max() < 4


def test_conditional_gumbels_given_a_sample_of_q_are_gumbels_again():
    logits = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64).expand(200_000, 3)
    x = harden(CODES.family(logits=logits), logits + gumbel(logits.shape, logits))
    noise = perturbed_given(codes(logits), x.unsqueeze(0), 1)[0, 0] - logits.log_softmax(-1)
    for t in (-1.0, 0.0, 1.5):
        cdf = torch.full((3,), math.exp(-math.exp(-t)), dtype=torch.float64)
        assert z_scores((noise < t).double(), cdf).abs().max() < 4


@DISCRETE
def test_gumbel_rao_has_the_mean_of_hard_gumbel_softmax_and_less_variance(case):
    variances = []
    _, hard = gradient_samples(GumbelSoftmax(0.7, hard=True), case, bumpy, ROWS)
    for conditional in (1, 3, 9):
        estimator = GumbelRao(0.7, conditional)
        _, rao = gradient_samples(estimator, case, bumpy, ROWS)
        difference = rao["logits"] - hard["logits"]
        assert z_scores(difference, torch.zeros(())).abs().max() < 4
        variances.append(rao["logits"].var(0).sum())
    assert variances[0] == pytest.approx(hard["logits"].var(0).sum().item(), rel=0.05)
    assert variances[0] > 1.2 * variances[1] > 1.2 * variances[2]


@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_gumbel_rao_of_a_bit_is_an_integral_over_the_logistic_noise(bit):
    logit, temperature = torch.tensor(0.6, dtype=torch.float64), 0.5
    noisy = torch.linspace(0, 40, 400_001, dtype=torch.float64) * (1 if bit else -1)
    density = torch.sigmoid(noisy - logit) * torch.sigmoid(logit - noisy)
    y = torch.sigmoid(noisy / temperature)
    slope = y * (1 - y) / temperature
    expected = torch.trapezoid(density * slope, noisy) / torch.trapezoid(density, noisy)

    leaf = logit.clone().requires_grad_()
    x = torch.tensor([bit], dtype=torch.float64)
    stand_in = GumbelRao(temperature, 400_000).stand_in(Bernoulli(logits=leaf), x)[0]
    (gradient,) = torch.autograd.grad(stand_in, leaf)
    assert gradient.item() == pytest.approx(expected.item(), abs=2e-3)


def test_a_derivative_through_the_conditional_noise_would_be_caught(monkeypatch):
    """Negative control: with it the mean is no longer that of the hard Gumbel-Softmax."""

    class Through(GumbelRao):
        def stand_in(self, q, x):
            with monkeypatch.context() as left_out:
                left_out.setattr(torch.Tensor, "detach", lambda tensor: tensor)
                perturbed = perturbed_given(q, x, self.conditional_samples)
            return (perturbed / self.temperature.value).softmax(-1).mean(0)

    _, hard = gradient_samples(GumbelSoftmax(0.7, hard=True), CODES, bumpy, ROWS)
    _, through = gradient_samples(Through(0.7, 4), CODES, bumpy, ROWS)
    assert z_scores(through["logits"] - hard["logits"], torch.zeros(())).abs().max() > 10


@DISCRETE
def test_decoupled_with_equal_temperatures_is_gumbel_softmax(case):
    results = []
    for estimator in (DecoupledSTGumbelSoftmax(0.6, 0.6), GumbelSoftmax(0.6)):
        torch.manual_seed(2)
        results.append(gradient_samples(estimator, case, bumpy, 9))
    torch.testing.assert_close(*results)


@DISCRETE
def test_decoupled_with_a_cold_forward_pass_is_the_hard_gumbel_softmax(case):
    results = []
    with pytest.warns(UserWarning, match="forward_temperature 1e-09 is below 0.05"):
        cold = DecoupledSTGumbelSoftmax(1e-9, 0.6)
    for estimator in (cold, GumbelSoftmax(0.6, hard=True)):
        torch.manual_seed(2)
        results.append(gradient_samples(estimator, case, bumpy, 9))
    torch.testing.assert_close(*results)


@DISCRETE
@pytest.mark.parametrize("estimator", EXACT_SAMPLES, ids=lambda e: type(e).__name__)
def test_samples_are_exact(estimator, case):
    q, _ = case.q(ROWS)
    z = estimator.sample(q)[0].detach()
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert z_scores(z, q.mean[0].detach()).abs().max() < 4


@pytest.mark.parametrize("estimator", [StraightThrough(), *EXACT_SAMPLES])
def test_a_gradient_can_be_differentiated_again(estimator):
    q, leaves = CODES.q(3)
    (gradient,) = torch.autograd.grad(
        estimator(q, CODES.flat(bumpy)).sum(), leaves["logits"], create_graph=True
    )
    (second,) = torch.autograd.grad(gradient.square().sum(), leaves["logits"])
    assert second.isfinite().all() and second.abs().max() > 0


def test_unwrapped_distributions():
    """One variable without Independent: batch shape [4], event shape [3] or []."""
    logits = torch.randn(4, 3, requires_grad=True)
    for estimator in (ReinMax(), GumbelRao(), GappedStraightThrough(), DecoupledSTGumbelSoftmax()):
        assert estimator(CODES.family(logits=logits), lambda z: z.sum(-1)).shape == (4,)
        assert estimator(Bernoulli(logits=logits), lambda z: z).shape == (4, 3)
        nested = Independent(Bernoulli(logits=logits), 2)
        assert estimator(nested, lambda z: z.sum((-1, -2))).shape == ()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GappedStraightThrough(gap=-1.0), "gap must be 'expected' or not negative, got -1"),
        (lambda: GappedStraightThrough(gap="p"), "got 'p'"),
        (lambda: GumbelRao(conditional_samples=0), "conditional_samples must be an integer"),
        (lambda: ReinMax(0.0), "temperature must be positive, got 0"),
        (lambda: DecoupledSTGumbelSoftmax(backward_temperature=-1), "backward_temperature must be"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
