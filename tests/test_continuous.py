"""Pathwise and measure-valued estimators, on models whose gradients are known."""

import math

import pytest
import torch
from oracles import NORMAL, bumpy, gradient_samples, normal_quadrature, z_scores
from torch import nn
from torch.distributions import (
    ExpTransform,
    Independent,
    LogNormal,
    Normal,
    Poisson,
    RelaxedBernoulli,
    TransformedDistribution,
    VonMises,
)

from vae_lab.aggregates import log_mean_exp, mean
from vae_lab.estimators import (
    DReG,
    MeasureValued,
    Reparameterization,
    StickingTheLanding,
)
from vae_lab.estimators.measure_valued import normal_moves
from vae_lab.estimators.pathwise import rsample
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli as BernoulliLikelihood
from vae_lab.networks import MLP
from vae_lab.objectives import IWAE, MonteCarloELBO
from vae_lab.vae import VAE

ROWS = 200_000


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z, s^2 I); W's columns are orthogonal, so p(z|x) is diagonal."""

    def __init__(self):
        self.weight = torch.tensor([[0.9, 0.5], [0.5, -0.9], [0.2, 0.0]], dtype=torch.float64)
        self.sigma = 0.7
        self.x = torch.tensor([0.8, -0.3, 1.1], dtype=torch.float64)

    def posterior(self):
        precision = 1 + self.weight.square().sum(0) / self.sigma**2
        return (self.weight.T @ self.x) / self.sigma**2 / precision, precision.rsqrt()

    def log_joint(self, z, weight=None):
        decoded = z @ (self.weight if weight is None else weight).mT
        log_px_z = Normal(decoded, self.sigma).log_prob(self.x).sum(-1)
        return log_px_z + Normal(0.0, 1.0).log_prob(z).sum(-1)

    def evidence(self):
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(3).double()
        zero = torch.zeros(3, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, covariance).log_prob(self.x)


MODEL = LinearGaussian()
APART = torch.tensor([0.1, 0.4]), torch.tensor([0.8, 0.5])  # not the posterior


def at(parameters, rows):
    loc, scale = (p.double().expand(rows, 2).clone().requires_grad_() for p in parameters)
    return Independent(Normal(loc, scale, validate_args=False), 1), (loc, scale)


def bound(estimator, parameters, rows, aggregate, weight=None):
    """The estimate and the gradients of loc and scale, f being log w as an objective makes it."""
    q, leaves = at(parameters, rows)
    density = estimator.density(q)
    value = estimator(
        q, lambda z: MODEL.log_joint(z, weight) - density.log_prob(z), aggregate=aggregate
    )
    return value, torch.autograd.grad(value.sum(), leaves, retain_graph=weight is not None)


def exact_elbo_gradient(parameters):
    q, leaves = at(parameters, 1)
    inner = Independent(Normal(leaves[0][0], leaves[1][0]), 1)
    value = normal_quadrature(inner, lambda z: MODEL.log_joint(z) - inner.log_prob(z))
    return torch.autograd.grad(value, leaves)


def exact_bound_gradient(parameters):
    """Of the two-sample bound, by quadrature over both samples."""
    q, leaves = at(parameters, 1)
    loc, scale = (torch.cat([leaf[0], leaf[0]]) for leaf in leaves)
    pair = Independent(Normal(loc, scale), 1)
    single = Independent(Normal(leaves[0][0], leaves[1][0]), 1)

    def f(z):
        z = torch.stack([z[:, :2], z[:, 2:]])
        return log_mean_exp(MODEL.log_joint(z) - single.log_prob(z))

    return torch.autograd.grad(normal_quadrature(pair, f, points=24), leaves)


@pytest.mark.parametrize(
    "estimator, aggregate",
    [(StickingTheLanding(), mean), (DReG(4), log_mean_exp), (DReG(4), mean)],
)
def test_no_variance_at_the_true_posterior(estimator, aggregate):
    value, gradients = bound(estimator, MODEL.posterior(), 50, aggregate)
    torch.testing.assert_close(value, MODEL.evidence().expand(50))
    for gradient in gradients:
        assert gradient.abs().max() < 1e-12


def test_the_plain_pathwise_gradient_does_not_stick_to_the_landing():
    _, gradients = bound(Reparameterization(), MODEL.posterior(), 50, mean)
    assert all(g.abs().mean() > 0.1 for g in gradients)


@pytest.mark.parametrize("estimator", [Reparameterization(), StickingTheLanding(3), DReG(2)])
def test_the_elbo_gradient_is_exact_in_the_mean(estimator):
    _, samples = bound(estimator, APART, ROWS, mean)
    for sample, exact in zip(samples, exact_elbo_gradient(APART), strict=True):
        assert z_scores(sample, exact[0]).abs().max() < 4


@pytest.mark.parametrize("estimator", [Reparameterization(2), DReG(2)])
def test_the_bounds_gradient_is_exact_in_the_mean(estimator):
    _, samples = bound(estimator, APART, ROWS, log_mean_exp)
    for sample, exact in zip(samples, exact_bound_gradient(APART), strict=True):
        assert z_scores(sample, exact[0]).abs().max() < 4


class StuckInTheBound(StickingTheLanding):
    multi_sample = True


class UnsquaredWeights(DReG):
    """The score dropped and not reparameterised."""

    def estimate(self, q, f, aggregate, context):
        return aggregate(f(q.rsample((self.num_samples,))))


@pytest.mark.parametrize("estimator", [StuckInTheBound(2), UnsquaredWeights(2)])
def test_sticking_the_landing_in_a_bound_would_be_biased(estimator):
    """Negative control: what the refusal of multi-sample bounds prevents."""
    _, samples = bound(estimator, APART, ROWS, log_mean_exp)
    scores = [z_scores(s, e[0]) for s, e in zip(samples, exact_bound_gradient(APART), strict=True)]
    assert max(s.abs().max() for s in scores) > 10


def test_dreg_of_one_sample_is_sticking_the_landing():
    results = []
    for estimator, aggregate in ((StickingTheLanding(1), mean), (DReG(1), log_mean_exp)):
        torch.manual_seed(4)
        results.append(bound(estimator, APART, 20, aggregate))
    torch.testing.assert_close(*results)


def test_dreg_has_less_variance_and_more_signal_with_more_samples():
    def statistics(estimator):
        _, (loc, _) = bound(estimator, APART, 20_000, log_mean_exp)
        return loc.var(0).sum(), (loc.mean(0).abs() / loc.std(0)).mean()

    assert statistics(DReG(4))[0] < 0.5 * statistics(Reparameterization(4))[0]
    assert statistics(DReG(64))[1] > 2 * statistics(DReG(4))[1]
    assert statistics(Reparameterization(64))[1] < statistics(Reparameterization(4))[1]


def test_the_decoders_gradient_is_that_of_the_bound_itself():
    gradients = []
    for estimator in (DReG(5), Reparameterization(5)):
        torch.manual_seed(1)
        weight = MODEL.weight.clone().requires_grad_()
        value, _ = bound(estimator, APART, 7, log_mean_exp, weight)
        gradients.append(torch.autograd.grad(value.sum(), weight))
    torch.testing.assert_close(*gradients)


def small_vae():
    torch.manual_seed(0)
    vae = VAE((1, 4, 4), MLP((8,)), Gaussian(2), BernoulliLikelihood()).double()
    return vae, torch.rand(6, 1, 4, 4, dtype=torch.float64).round()


@pytest.mark.parametrize("objective", [IWAE(), MonteCarloELBO()])
def test_objectives_train_the_decoder_alike_and_the_encoder_otherwise(objective):
    vae, x = small_vae()
    decoder, encoder = [], []
    for estimator in (DReG(5), Reparameterization(5)):
        torch.manual_seed(1)
        vae.zero_grad()
        objective(vae, estimator, x).objective.sum().backward()
        decoder.append([p.grad.clone() for p in (vae.output_bias, *vae.decoder.parameters())])
        encoder.append([p.grad.clone() for p in vae.head.parameters()])
    torch.testing.assert_close(*decoder)
    assert not torch.allclose(encoder[0][0], encoder[1][0])


def test_a_bound_is_evaluated_without_gradients():
    vae, x = small_vae()
    with torch.no_grad():
        assert IWAE()(vae, DReG(5), x).objective.isfinite().all()


def test_the_coupled_maxwell_is_a_maxwell_around_its_normal():
    q = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    z = q.sample((400_000,))
    maxwell = normal_moves(q, z)[2][2]
    for power, moment in ((1, 0.0), (2, 3.0), (3, 0.0), (4, 15.0)):  # of m^2 exp(-m^2 / 2)
        assert z_scores(maxwell**power, torch.tensor(moment)).abs() < 4
    ratio = z / maxwell  # uniform, and independent of the Maxwell
    assert z_scores(ratio, torch.tensor(0.5)).abs() < 4
    assert z_scores(ratio.square(), torch.tensor(1 / 3)).abs() < 4
    assert z_scores((ratio - 0.5) * maxwell.abs(), torch.tensor(0.0)).abs() < 4


def digital(z):
    """1 above a threshold: no derivative where it has one, so nothing for a pathwise gradient."""
    return (z.sum(-1) > 0.2).double() + 0 * z.sum(-1)


def test_a_jump_is_seen_by_the_measure_valued_gradient_and_not_by_the_pathwise_one():
    loc, scale = (torch.tensor(v, dtype=torch.float64) for v in NORMAL.parameters.values())
    spread = scale.square().sum().sqrt()
    density = Normal(0.0, 1.0).log_prob((0.2 - loc.sum()) / spread).exp() / spread
    exact = {
        "loc": density.expand(2),
        "scale": density * (0.2 - loc.sum()) / spread**2 * scale,
    }
    _, samples = gradient_samples(MeasureValued(), NORMAL, digital, ROWS)
    for name, sample in samples.items():
        assert z_scores(sample, exact[name]).abs().max() < 4
    _, pathwise = gradient_samples(Reparameterization(), NORMAL, digital, 100)
    assert pathwise["loc"].abs().max() == 0


def test_the_measure_valued_gradient_of_a_bound():
    q, leaves = NORMAL.q()
    loc, scale = (torch.cat([leaf, leaf]) for leaf in leaves.values())
    pair = Independent(Normal(loc, scale), 1)
    value = normal_quadrature(
        pair, lambda z: log_mean_exp(torch.stack([bumpy(z[:, :2]), bumpy(z[:, 2:])])), points=30
    )
    exact = torch.autograd.grad(value, list(leaves.values()))
    _, samples = gradient_samples(MeasureValued(2), NORMAL, bumpy, ROWS, aggregate=log_mean_exp)
    for sample, expected in zip(samples.values(), exact, strict=True):
        assert z_scores(sample, expected).abs().max() < 4


def test_replacing_all_coordinates_at_once_would_be_caught(monkeypatch):
    """Negative control of the D copies."""
    monkeypatch.setattr(
        "vae_lab.estimators.measure_valued._one_at_a_time",
        lambda goal, z, q: goal.expand(q.event_shape.numel(), *goal.shape),
    )
    _, exact = NORMAL.exact_gradient(bumpy)
    _, samples = gradient_samples(MeasureValued(), NORMAL, bumpy, ROWS)
    scores = [z_scores(s, e) for s, e in zip(samples.values(), exact, strict=True)]
    assert max(s.abs().max() for s in scores) > 10


@pytest.mark.parametrize("event", [0, 1, 2])
@pytest.mark.parametrize("family", [Normal, Poisson])
def test_events_of_any_shape(event, family):
    """The gradient of a sum over the batch does not depend on what counts as event."""
    shape = (4, 2, 3)
    parameters = [torch.rand(shape, dtype=torch.float64).add(0.5).requires_grad_()]
    if family is Normal:
        parameters.append(torch.rand(shape, dtype=torch.float64).add(0.5).requires_grad_())
    q = Independent(family(*parameters), event)
    dims = tuple(range(-event, 0))
    f = (lambda z: z.square().sum(dims)) if event else torch.square
    value = MeasureValued()(q, f)
    assert value.shape == shape[: 3 - event]
    for gradient in torch.autograd.grad(value.sum(), parameters):
        assert gradient.shape == shape and gradient.isfinite().all()


@pytest.mark.parametrize("concentration", [0.01, 0.7, 5.0, 60.0, 3000.0])
def test_a_von_mises_sample_moves_as_its_distribution_function_says(concentration):
    """Sample by sample: F(z; kappa) does not change where z moves along the implicit derivative."""
    torch.manual_seed(2)
    loc = torch.full((500,), 2.5, dtype=torch.float64)
    kappa = torch.full_like(loc, concentration).requires_grad_()
    (z,) = rsample(VonMises(loc, kappa), 1)
    (slope,) = torch.autograd.grad(z.sum(), kappa)
    angle = torch.remainder(z.detach() - loc + math.pi, 2 * math.pi) - math.pi
    step = 1e-4 * concentration

    def cdf(sign):
        here, there = angle + sign * step * slope, concentration + sign * step
        line = torch.linspace(0, 1, 20_001, dtype=torch.float64) * here.unsqueeze(-1)
        scale = 2 * math.pi * torch.special.i0e(torch.tensor(there, dtype=torch.float64))
        return torch.trapezoid((there * (line.cos() - 1)).exp() / scale, line)

    change = (cdf(1) - cdf(-1)) / (2 * step)
    assert (concentration * change.abs()).max() < 1e-6
    assert (concentration * slope.abs()).max() > 1e-3, "or it would hold for no movement at all"


def test_a_concentrated_von_mises_is_a_normal():
    """There dz / dkappa = -z / (2 kappa), as for a normal of variance 1 / kappa."""
    kappa = torch.full((500,), 1e5, dtype=torch.float64, requires_grad=True)
    (z,) = rsample(VonMises(torch.zeros_like(kappa), kappa), 1)
    (slope,) = torch.autograd.grad(z.sum(), kappa)
    torch.testing.assert_close(slope, -z.detach() / (2 * kappa.detach()), rtol=1e-4, atol=0)


def test_what_has_no_path_is_refused_with_the_names_of_what_would_do():
    q = Poisson(torch.ones(3))
    with pytest.raises(ValueError, match="has rsample, got Poisson; use one of .*ScoreFunction"):
        Reparameterization()(q, torch.cos)


@pytest.mark.parametrize(
    "q",
    [
        RelaxedBernoulli(torch.tensor(0.5), logits=torch.zeros(3)),
        TransformedDistribution(Normal(torch.zeros(3), 1.0), [ExpTransform()]),
    ],
    ids=["relaxed", "transformed"],
)
def test_what_its_parameters_do_not_make_has_no_constant_density(q):
    refusal = f"its parameters alone, or has detach, got {type(q).__name__}; use one"
    with pytest.raises(ValueError, match=refusal):
        StickingTheLanding()(q, lambda z: z)
    assert Reparameterization.accepts(q) and not DReG.accepts(q)
    lognormal = LogNormal(torch.zeros(3), torch.ones(3))
    assert StickingTheLanding.accepts(lognormal)
    assert StickingTheLanding().density(lognormal).log_prob(torch.ones(3)).shape == (3,)


def test_dreg_refuses_a_black_box():
    q, _ = at(APART, 3)
    with pytest.raises(ValueError, match="f must be differentiable in z, got values without"):
        DReG()(q, lambda z: z.detach().reshape(2, 3, -1).sum(-1), aggregate=log_mean_exp)


def test_dreg_keeps_a_nested_networks_gradient():
    """What f closes over beside z, here a network of the inner integrand, is trained as usual."""
    network = nn.Linear(2, 1).double()
    q, _ = at(APART, 3)
    value = DReG(3)(q, lambda z: network(z).squeeze(-1), aggregate=log_mean_exp)
    value.sum().backward()
    assert network.weight.grad.abs().max() > 0
    assert math.isclose(network.bias.grad.item(), 3.0)
