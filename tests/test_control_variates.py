"""Control variates that learn: the papers' formulas, exact expectations, and what trains what."""

import copy
import itertools
import math

import pytest
import torch
from oracles import BITS, CODES, NORMAL, Case, bumpy, gradient_samples, z_scores
from torch import nn
from torch.distributions import Bernoulli, Independent

from vae_lab.aggregates import log_mean_exp, mean
from vae_lab.estimators import (
    LAX,
    REBAR,
    RELAX,
    RODEO,
    DoubleCV,
    Reparameterization,
    ScoreFunction,
    rebar,
    relax,
    stein,
)
from vae_lab.estimators.relaxations import perturb

TWO_BITS = Case("bits", Bernoulli, {"logits": [0.4, -1.2]}, 1)
DISCRETE = pytest.mark.parametrize("case", [BITS, CODES], ids=lambda case: case.name)
ALL = [
    pytest.param(REBAR(0.7), BITS, mean, id="REBAR-bits"),
    pytest.param(REBAR(0.7), CODES, mean, id="REBAR-codes"),
    pytest.param(REBAR(0.7, num_samples=2), CODES, log_mean_exp, id="REBAR-bound"),
    pytest.param(RELAX((5,)), BITS, mean, id="RELAX-bits"),
    pytest.param(RELAX((5,), num_samples=3), CODES, log_mean_exp, id="RELAX-bound"),
    pytest.param(RELAX((5,), with_f=True, num_samples=2), CODES, mean, id="RELAX-with-f"),
    pytest.param(LAX((5,)), NORMAL, mean, id="LAX"),
    pytest.param(LAX((5,), num_samples=2), NORMAL, log_mean_exp, id="LAX-bound"),
    pytest.param(DoubleCV(alpha=0.1), BITS, mean, id="DoubleCV-bits"),
    pytest.param(DoubleCV(3), CODES, mean, id="DoubleCV-codes"),
    pytest.param(RODEO(hidden=5), BITS, mean, id="RODEO"),
    pytest.param(RODEO(3, hidden=5), BITS, mean, id="RODEO-3"),
]
EVERY = pytest.mark.parametrize("estimator, case, aggregate", ALL)


def alive(estimator, case):
    """A copy whose networks are far from zero, in evaluation mode."""
    estimator = copy.deepcopy(estimator).double().eval()
    estimator(case.q(2)[0], case.flat(bumpy))
    for network in estimator.children():
        for p in network.parameters():
            nn.init.normal_(p, std=0.5)
    return estimator


def run(estimator, case, rows, aggregate=mean, f=bumpy):
    """Seeded: the value and the leaves of q."""
    torch.manual_seed(11)
    q, leaves = case.q(rows)
    return estimator(q, case.flat(f), aggregate=aggregate), leaves


def second_moment(samples):
    return sum(s.square().flatten(1).sum(1) for s in samples.values())


def paper_bits(logits, z, v=None):
    """z, z~ and b of REBAR, differentiable; v is tied to z unless it is given."""
    noise = (z - logits).detach()
    b = (z > 0).double()
    p = logits.sigmoid()
    if v is None:
        u, stay = torch.sigmoid(noise), 1 - p.detach()
        v = torch.where(z > 0, (u - stay) / (1 - stay), u / stay)
    conditional = torch.where(b > 0, v * p + 1 - p, v * (1 - p))
    return logits + noise, logits + torch.logit(conditional), b


def paper_codes(logits, z, v=None):
    """The same for one-hot codes, in exponentials E = -log v."""
    log_pi = logits.log_softmax(-1)
    noise = (z - log_pi).detach()
    b = nn.functional.one_hot(z.argmax(-1), z.shape[-1]).double()
    if v is None:
        top = (-z.detach()).exp().amin(-1, keepdim=True)  # E_b
        rest = ((-z.detach()).exp() - top) * log_pi.detach().exp()
        E = torch.where(b > 0, top, rest)
    else:
        E = -v.log()
    chosen = (E * b).sum(-1, keepdim=True)
    return log_pi + noise, -torch.where(b > 0, E, E / log_pi.exp() + chosen).log(), b


def paper_rebar(case, z, eta, tau, v=None):
    """(f(b) - eta c(z~)) d log q(b) + eta d c(z) - eta d c(z~), row by row."""
    q, leaves = case.q(z.shape[0])
    bits = case.family is Bernoulli
    path, held, b = (paper_bits if bits else paper_codes)(leaves["logits"], z, v)
    squash = torch.sigmoid if bits else lambda x: x.softmax(-1)
    f = case.flat(bumpy)
    c, c_held = f(squash(path / tau)), f(squash(held / tau))
    credit = (f(b) - eta * c_held).detach()
    (credit * q.log_prob(b) + eta * (c - c_held)).sum().backward()
    return leaves["logits"].grad


@DISCRETE
def test_rebar_is_the_papers_formula_with_tied_noise(case):
    estimator = REBAR(eta=0.7, temperature=0.4).double()
    value, leaves = run(estimator, case, 50)
    value.sum().backward()
    torch.manual_seed(11)
    z = perturb(case.q(50)[0].base_dist, 1)[0].detach()
    torch.testing.assert_close(leaves["logits"].grad, paper_rebar(case, z, 0.7, 0.4))


@DISCRETE
def test_tied_noise_is_worth_its_two_evaluations_of_three(case):
    rows = 50_000
    z = perturb(case.q(rows)[0].base_dist, 1)[0].detach()
    tied = paper_rebar(case, z, 1.0, 0.5)
    independent = paper_rebar(case, z, 1.0, 0.5, torch.rand_like(z))
    _, (exact,) = case.exact_gradient(bumpy)
    for samples in (tied, independent):
        assert z_scores(samples, exact).abs().max() < 4
    assert 2 * tied.var(0).sum() < 3 * independent.var(0).sum()


@DISCRETE
def test_rebar_without_eta_is_the_score_function(case):
    seen = {}

    def f(z):
        seen["b"] = z[0]
        return bumpy(z)

    value, leaves = run(REBAR(eta=0.0).double(), case, 9, f=lambda z: f(z))
    value.sum().backward()
    b = seen["b"].reshape(leaves["logits"].shape)
    p = case.q(9)[0].mean.detach()
    credit = bumpy(seen["b"]).reshape(9, *[1] * case.event_dims)
    torch.testing.assert_close(leaves["logits"].grad, credit * (b - p))


@DISCRETE
def test_relax_whose_network_is_zero_is_rebar(case):
    relaxed = alive(RELAX(with_f=True, temperature=0.4), case)
    for p in relaxed.network.parameters():
        nn.init.zeros_(p)
    gradients = []
    for estimator in (relaxed, REBAR(1.0, temperature=0.4).double()):
        value, leaves = run(estimator, case, 9)
        value.sum().backward()
        gradients.append([leaves["logits"].grad, estimator.log_temperature.grad])
    torch.testing.assert_close(*gradients)


class Known(nn.Module):
    def forward(self, q, z, context):
        return bumpy(z)


def test_lax_whose_network_is_f_is_the_pathwise_gradient():
    known = LAX().double().eval()
    known.network = Known()
    (value, leaves), (expected, others) = (
        run(estimator, NORMAL, 9) for estimator in (known, Reparameterization())
    )
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(value, expected)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, others[name].grad)


def test_lax_sees_the_jump_that_the_path_does_not():
    estimator = alive(LAX((5,)), NORMAL)
    f = lambda z: (z[..., 0] > 0).double()  # noqa: E731
    _, samples = gradient_samples(estimator, NORMAL, f, 100_000)
    loc, scale = (NORMAL.parameters[name][0] for name in ("loc", "scale"))
    density = math.exp(-0.5 * (loc / scale) ** 2) / math.sqrt(2 * math.pi) / scale
    exact = torch.tensor([density, 0.0], dtype=torch.float64)
    assert z_scores(samples["loc"], exact).abs().max() < 4


@pytest.mark.parametrize("estimator", [DoubleCV(2, alpha=0.0), RODEO(2)])
def test_without_their_control_variate_they_are_leave_one_out(estimator):
    gradients = []
    for each in (estimator.double(), ScoreFunction(2)):
        value, leaves = run(each, BITS, 9)
        value.sum().backward()
        gradients.append(leaves["logits"].grad)
    torch.testing.assert_close(*gradients)


def half_line(points=120):
    """Nodes and weights of an integral over (0, infinity): the double exponential rule."""
    t = torch.linspace(-4.5, 4.2, points, dtype=torch.float64)
    z = (t - (-t).exp()).exp()
    return z, z * (1 + (-t).exp()) * (t[1] - t[0])


def noise_quadrature(logits):
    """Relaxed logits z [n, 2] of two bits, and weights that integrate over their density."""
    nodes, weights = half_line()
    nodes, weights = torch.cat([-nodes, nodes]), weights.repeat(2)
    z = torch.cartesian_prod(nodes, nodes)
    density = (z - logits).sigmoid() * (logits - z).sigmoid()
    return z, torch.cartesian_prod(weights, weights).prod(-1) * density.prod(-1)


@pytest.mark.parametrize("estimator", [REBAR(0.7), RELAX((5,)), RELAX((5,), with_f=True)])
def test_expectation_over_all_relaxed_noise_is_exact(estimator, monkeypatch):
    estimator = alive(estimator, TWO_BITS)
    _, (exact,) = TWO_BITS.exact_gradient(bumpy)
    z, weight = noise_quadrature(TWO_BITS.q()[1]["logits"].detach())
    torch.testing.assert_close(weight.sum().item(), 1.0, rtol=0, atol=1e-12)
    monkeypatch.setattr(rebar, "perturb", lambda q, num_samples: z.unsqueeze(0))
    _, samples = gradient_samples(estimator, TWO_BITS, bumpy, len(z))
    expectation = (weight.unsqueeze(-1) * samples["logits"]).sum(0)
    torch.testing.assert_close(expectation, exact, rtol=0, atol=1e-10)


class Prescribed(Independent):
    """A distribution whose batch of samples is every tuple of its states."""

    def sample(self, sample_shape=()):
        return self.tuples


def expectation(estimator, case, f=bumpy):
    """The gradient's mean over all S-tuples of states, exactly."""
    states = case.states()
    size = estimator.num_samples
    tuples = list(itertools.product(range(len(states)), repeat=size))
    index = torch.tensor(tuples).T  # [S, tuples]
    q, leaves = case.q(len(tuples))
    q = Prescribed(q.base_dist, 1, validate_args=False)
    q.tuples = states[index]
    weight = q.log_prob(q.tuples).sum(0).exp().detach()
    (weight * estimator(q, case.flat(f))).sum().backward()
    return leaves["logits"].grad.sum(0)


EXACT = pytest.mark.parametrize(
    "estimator, case",
    [
        (DoubleCV(2, alpha=0.8), BITS),
        (DoubleCV(3, alpha=-0.4), TWO_BITS),
        (DoubleCV(2, alpha=0.8), CODES),
        (RODEO(2, hidden=5), BITS),
        (RODEO(3, hidden=5), TWO_BITS),
    ],
)


@EXACT
def test_expectation_over_all_tuples_is_exact(estimator, case):
    _, (exact,) = case.exact_gradient(bumpy)
    torch.testing.assert_close(expectation(alive(estimator, case), case), exact, rtol=0, atol=1e-10)


def test_without_the_correction_the_second_control_variate_is_biased(monkeypatch):
    monkeypatch.setattr(stein, "covariance", lambda q, v: torch.zeros_like(v))
    _, (exact,) = BITS.exact_gradient(bumpy)
    assert (expectation(DoubleCV(alpha=0.8).double(), BITS) - exact).abs().max() > 1e-2


def test_a_stein_function_that_knows_its_own_sample_is_biased(monkeypatch):
    monkeypatch.setattr(stein, "_others", lambda n, device: torch.arange(n).expand(n, n))
    _, (exact,) = BITS.exact_gradient(bumpy)
    estimator = alive(RODEO(hidden=5), BITS)
    assert (expectation(estimator, BITS) - exact).abs().max() > 1e-2


def trained(estimator):
    return [p for p in estimator.parameters() if p.requires_grad]


@EVERY
def test_own_parameters_follow_the_variance_of_each_datum(estimator, case, aggregate):
    """Against finite differences at the same noise, along a random direction, data weighted."""
    estimator = alive(estimator, case)
    weight = torch.rand(6, dtype=torch.float64)
    value, _ = run(estimator, case, 6, aggregate)
    (weight * value).sum().backward()
    direction = [torch.randn_like(p) for p in trained(estimator)]
    slopes = [(p.grad * d).sum() for p, d in zip(trained(estimator), direction, strict=True)]

    def moment(step):
        other = copy.deepcopy(estimator)
        with torch.no_grad():
            for p, d in zip(trained(other), direction, strict=True):
                p.add_(step * d)
        value, leaves = run(other, case, 6, aggregate)
        value.sum().backward()
        return (weight * second_moment({n: leaf.grad for n, leaf in leaves.items()})).sum()

    difference = (moment(1e-5) - moment(-1e-5)) / 2e-5
    assert sum(slopes).abs() > 1e-3
    torch.testing.assert_close(sum(slopes), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["eta", "log_temperature"])
@DISCRETE
def test_each_of_rebars_parameters_follows_the_variance(case, name):
    moments, step = [], 1e-5
    for shift in (0.0, step, -step):
        estimator = REBAR(0.7).double()
        with torch.no_grad():
            getattr(estimator, name).add_(shift)
        value, leaves = run(estimator, case, 6)
        value.mean().backward()
        moments.append(36 * second_moment({"logits": leaves["logits"].grad}).mean())
        if not shift:
            slope = getattr(estimator, name).grad.squeeze(0)
    torch.testing.assert_close(slope, (moments[1] - moments[2]) / (2 * step), rtol=1e-5, atol=1e-6)


def decoder(case):
    torch.manual_seed(4)
    size = torch.Size(case.q()[0].event_shape).numel()
    network = nn.Sequential(nn.Linear(size, 6), nn.Softplus(), nn.Linear(6, 1)).double()
    return network, lambda z: network(z).squeeze(-1)


@EVERY
def test_decoder_learns_from_the_plain_monte_carlo_value(estimator, case, aggregate):
    estimator, (network, f), hard = alive(estimator, case), decoder(case), []

    def seen(z):
        hard.append(z[: estimator.num_samples].detach())
        return f(z)

    value, _ = run(estimator, case, 6, aggregate, seen)
    gradients = torch.autograd.grad(value.sum(), list(network.parameters()))
    plain = aggregate(f(hard[0]))
    expected = torch.autograd.grad(plain.sum(), list(network.parameters()))
    torch.testing.assert_close(value, plain, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradients, expected, rtol=1e-13, atol=1e-15)


@EVERY
def test_encoder_does_not_feel_the_variance_objective(estimator, case, aggregate, monkeypatch):
    estimator, (network, f), gradients = alive(estimator, case), decoder(case), []
    for own_loss in (True, False):
        if not own_loss:
            for module in (rebar, relax, stein):
                monkeypatch.setattr(module, "descent", torch.zeros_like)
        value, leaves = run(estimator, case, 6, aggregate, f)
        inputs = [*leaves.values(), *network.parameters()]
        gradients.append(torch.autograd.grad(value.sum(), inputs))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@EVERY
def test_own_parameters_do_not_care_for_the_sign_of_the_objective(estimator, case, aggregate):
    estimator, gradients = alive(estimator, case), []
    for sign in (1.0, -1.0):
        value, _ = run(estimator, case, 6, aggregate)
        gradients.append(torch.autograd.grad(sign * value.mean(), trained(estimator)))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@EVERY
def test_without_gradients_the_value_is_one_plain_call(estimator, case, aggregate):
    estimator, calls = alive(estimator, case), []

    def f(z):
        calls.append(len(z))
        return bumpy(z)

    with torch.no_grad():
        value, _ = run(estimator, case, 6, aggregate, f)
    assert value.shape == (6,) and calls == [estimator.num_samples]


def moment_of(estimator, case):
    torch.manual_seed(6)
    _, samples = gradient_samples(estimator, case, bumpy, 10_000)
    return second_moment(samples).mean()


def test_ranking_of_variances():
    score = moment_of(ScoreFunction(1, "none"), BITS)
    leave_one_out = moment_of(ScoreFunction(2), BITS)
    assert moment_of(REBAR().double(), BITS) < score
    assert moment_of(DoubleCV(2).double(), BITS) < leave_one_out
    assert moment_of(DoubleCV(2).double(), CODES) < moment_of(ScoreFunction(2), CODES)


@pytest.mark.parametrize("estimator", [REBAR(), RELAX(with_f=True), DoubleCV(), RODEO()])
def test_a_black_box_is_refused_also_if_it_is_trained(estimator):
    q, _ = BITS.q(3, torch.float32)
    theta = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match="f must be differentiable in z"):
        estimator(q, lambda z: theta * (z > 0.5).double().sum(-1))


def test_relax_takes_a_black_box():
    f = lambda z: (z.detach() > 0.5).double().sum(-1)  # noqa: E731
    _, samples = gradient_samples(alive(RELAX((5,)), BITS), BITS, f, 50_000)
    p = BITS.q()[0].mean.detach()
    assert z_scores(samples["logits"], p * (1 - p)).abs().max() < 4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: REBAR(temperature=0.0), "temperature must be positive, got 0"),
        (lambda: RELAX(hidden=()), "hidden must name at least one layer, got none"),
        (lambda: DoubleCV(1), "num_samples must be an integer of at least 2, got 1"),
        (lambda: RODEO(hidden=0), "hidden must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
