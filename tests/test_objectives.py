"""Bounds on log p(x), against models whose log p(x) and gradients are known exactly."""

import copy
import math

import pytest
import torch
from estimator_cases import UNBIASED
from oracles import z_scores
from tiny import (
    LinearGaussian,
    Patches,
    binary_images,
    discrete_vae,
    exact_elbo,
    gradient_draws,
    gradients,
    grid_vae,
    is_encoder,
    kl_to_posterior,
    log_evidence,
)

from vae_lab.estimators import (
    OVIS,
    REBAR,
    DisARM,
    DReG,
    Exact,
    GumbelSoftmax,
    MeasureValued,
    Reparameterization,
    ScoreFunction,
    StickingTheLanding,
    SumAndSample,
)
from vae_lab.latents import Bernoulli, Categorical, Gaussian
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO
from vae_lab.schedules import Linear

LIMIT = 4.5  # standard errors; the largest of some fifty entries is looked at

MAKE = [
    pytest.param(lambda: discrete_vae(Bernoulli(3, learn_prior=True)), id="bits"),
    pytest.param(lambda: discrete_vae(Categorical(2, 3, learn_prior=True)), id="codes"),
    pytest.param(lambda: grid_vae(Bernoulli(1, learn_prior=True)), id="bits of a grid"),
    pytest.param(lambda: grid_vae(Categorical(1, 3, learn_prior=True)), id="codes of a grid"),
]
MOST = 81**2  # tuples of states that are enumerated
GAUSSIAN = {
    "fixed": lambda: LinearGaussian(Gaussian(2)),
    "learned": lambda: LinearGaussian(Gaussian(2, learn_prior=True)),
    "of a grid": lambda: LinearGaussian(
        Gaussian(1, learn_prior=True), network=Patches(2, reach=3), shape=(1, 4, 2)
    ),
}
SCORE_FUNCTIONS = [(2, "learned"), (2, "leave_one_out_arithmetic")]  # all: test_estimators.py


@pytest.fixture(params=MAKE)
def discrete(request):
    """A model with 8, 9, 16 or 81 values of z."""
    return request.param()


@pytest.fixture(params=GAUSSIAN)
def gaussian(request):
    return GAUSSIAN[request.param]()


def evaluate(objective, vae, estimator, x, rows):
    """The terms of `rows` independent evaluations, each [rows, B]."""
    with torch.no_grad():
        terms = objective.double()(vae, estimator, x.repeat(rows, 1, 1, 1))
    return type(terms)(*(term.unflatten(0, (rows, len(x))) for term in terms))


def test_elbo_plus_kl_to_the_posterior_is_the_evidence(discrete):
    x = binary_images(shape=discrete.shape)
    elbo = ELBO()(discrete, Exact(), x).objective
    gap = kl_to_posterior(discrete, x)
    torch.testing.assert_close(elbo + gap, log_evidence(discrete, x))
    assert (gap > 0.05).all(), "q must not be the posterior, or this tests nothing"


def test_elbo_of_a_linear_gaussian_model(gaussian):
    for objective in (ELBO(), MonteCarloELBO()):
        values = evaluate(objective, gaussian.vae, Reparameterization(), gaussian.x, 20_000)
        assert z_scores(values.objective, gaussian.elbo()).abs().max() < LIMIT
    assert (gaussian.log_evidence() - gaussian.elbo() > 0.05).all()


def test_elbo_is_tight_at_the_posterior():
    """One latent variable, so the posterior is in the family: then every sample says log p(x)."""
    model = LinearGaussian(Gaussian(1))
    posterior = model.posterior()
    slope = (posterior.mean[1:] - posterior.mean[0]).squeeze(-1)
    design = (model.x[1:] - model.x[0]).flatten(1)
    weight = torch.linalg.lstsq(design, slope).solution
    with torch.no_grad():
        model.vae.head.weight.copy_(torch.stack([weight, torch.zeros(4)]))
        model.vae.head.bias[0] = posterior.mean[0, 0] - weight @ model.x[0].flatten()
        model.vae.head.bias[1] = posterior.covariance_matrix[0, 0].log() / 2
    for objective in (MonteCarloELBO(), IWAE()):
        values = objective(model.vae, Reparameterization(3), model.x).objective
        torch.testing.assert_close(values, model.log_evidence())


def test_parts_add_up(discrete):
    x = binary_images(shape=discrete.shape)
    for objective in (ELBO(), MonteCarloELBO()):
        terms = objective(discrete, Exact(), x)
        torch.testing.assert_close(terms.elbo, exact_elbo(discrete, x))
        torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)
        torch.testing.assert_close(terms.objective, terms.elbo)


@pytest.mark.parametrize("estimator", [ScoreFunction(2), SumAndSample(), GumbelSoftmax(hard=True)])
@pytest.mark.parametrize("objective", [ELBO(), MonteCarloELBO(), MonteCarloELBO(0.3)])
def test_the_logged_elbo_is_the_elbo(objective, estimator):
    """Also where the estimator's points are not equally likely, and where beta is not 1."""
    vae = discrete_vae(Bernoulli(3))
    x = binary_images()
    values = evaluate(objective, vae, estimator, x, 5_000)
    assert z_scores(values.elbo, exact_elbo(vae, x)).abs().max() < LIMIT


POINTS = [ScoreFunction(2), Exact(2), REBAR(num_samples=2), DisARM(2), OVIS(2, num_auxiliary=1)]


@pytest.mark.parametrize("estimator", POINTS, ids=lambda e: type(e).__name__)
def test_the_elbo_logged_beside_a_bound_is_the_elbo(estimator):
    """Whatever points the estimator chose: a whole support, relaxed ones, pairs."""
    vae = discrete_vae(Bernoulli(3))
    x = binary_images()
    values = evaluate(IWAE(), vae, estimator.double(), x, 5_000)
    assert z_scores(values.elbo, exact_elbo(vae, x)).abs().max() < LIMIT


def test_the_elbo_logged_beside_a_bound_of_moved_points_is_the_elbo(gaussian):
    values = evaluate(IWAE(), gaussian.vae, MeasureValued(2), gaussian.x, 5_000)
    assert z_scores(values.elbo, gaussian.elbo()).abs().max() < LIMIT


def test_a_bound_of_one_sample_is_the_elbo(discrete, gaussian):
    x = binary_images(shape=discrete.shape)
    values = evaluate(IWAE(), discrete, ScoreFunction(1, "none"), x, 5_000)
    assert z_scores(values.objective, exact_elbo(discrete, x)).abs().max() < LIMIT
    values = evaluate(IWAE(), gaussian.vae, Reparameterization(1), gaussian.x, 20_000)
    assert z_scores(values.objective, gaussian.elbo()).abs().max() < LIMIT


def test_the_exact_bound_rises_with_its_samples_up_to_the_evidence(discrete):
    x = binary_images(shape=discrete.shape)
    bounds = [exact_elbo(discrete, x)]
    tuples = [s for s in (1, 2, 3) if discrete.latent.num_states**s <= MOST]
    for samples in tuples:
        bounds.append(IWAE()(discrete, Exact(samples, max_states=MOST), x).objective)
    bounds = torch.stack([*bounds, log_evidence(discrete, x)])
    torch.testing.assert_close(bounds[0], bounds[1])
    assert (bounds[1:].diff(dim=0) > 1e-3).all()


def test_the_sampled_bound_rises_with_its_samples_up_to_the_evidence(gaussian):
    means = []
    for samples in (1, 2, 8, 64):
        estimator = Reparameterization(samples)
        values = evaluate(IWAE(), gaussian.vae, estimator, gaussian.x, 4_000).objective
        means.append(values.mean(0))
    means = torch.stack([*means, gaussian.log_evidence()])
    assert (means.diff(dim=0) > 0).all()
    assert (means[-1] - means[-2]).max() < 0.1 * (means[-1] - means[0]).max()


def test_exact_gradients_are_those_of_the_enumerated_elbo(discrete):
    x = binary_images(shape=discrete.shape)
    found = gradients(ELBO(), discrete, Exact(), x)
    parameters = [p for p in discrete.parameters() if p.requires_grad]
    expected = torch.autograd.grad(exact_elbo(discrete, x).mean(), parameters)
    expected = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", UNBIASED)
@pytest.mark.parametrize("make", MAKE[2:])
def test_every_unbiased_estimator_trains_a_grid_without_bias(make, estimator):
    """The encoder, the decoder and the prior that all places have in common."""
    vae, estimator = make(), copy.deepcopy(estimator).double()
    if not estimator.accepts(vae.latent.prior()):
        return
    x = binary_images(shape=vae.shape)
    exact = gradients(ELBO(), vae, Exact(), x)
    ELBO()(vae, estimator, x)  # lazy layers get their shape, and an average its first value
    draws = gradient_draws(ELBO(), vae, estimator.eval(), x, repeats=40, copies=20)
    assert z_scores(draws, exact).abs().max() < LIMIT


@pytest.mark.parametrize("samples, baseline", SCORE_FUNCTIONS)
@pytest.mark.parametrize("objective", [ELBO(), MonteCarloELBO(0.7)], ids=lambda o: type(o).__name__)
def test_score_function_gradients(discrete, objective, samples, baseline):
    x = binary_images(shape=discrete.shape)
    estimator = ScoreFunction(samples, baseline).double().eval()
    exact = gradients(objective, discrete, Exact(), x)
    draws = gradient_draws(objective, discrete, estimator, x)
    assert z_scores(draws, exact).abs().max() < LIMIT
    assert z_scores(draws, 0.9 * exact).abs().max() > LIMIT, "a tenth must be seen"


@pytest.mark.parametrize("samples, baseline", SCORE_FUNCTIONS)
def test_gradients_of_the_two_sample_bound(discrete, samples, baseline):
    """VIMCO, with and without a learned baseline, against the enumeration of all pairs."""
    x = binary_images(shape=discrete.shape)
    estimator = ScoreFunction(samples, baseline).double().eval()
    exact = gradients(IWAE(), discrete, Exact(2, MOST), x)
    draws = gradient_draws(IWAE(), discrete, estimator, x)
    assert z_scores(draws, exact).abs().max() < LIMIT
    other = gradients(ELBO(), discrete, Exact(), x)
    assert z_scores(draws, other).abs().max() > LIMIT, "the bound must not be the ELBO"


def test_hard_gumbel_softmax_is_exact_for_the_decoder_and_biased_for_the_encoder(discrete):
    x = binary_images(shape=discrete.shape)
    exact = gradients(ELBO(), discrete, Exact(), x)
    draws = gradient_draws(ELBO(), discrete, GumbelSoftmax(0.5, hard=True), x)
    scores, encoder = z_scores(draws, exact).abs(), is_encoder(discrete)
    assert scores[~encoder].max() < LIMIT < scores[encoder].max()
    mean = draws.mean(0)[encoder]
    assert torch.cosine_similarity(mean, exact[encoder], dim=0) > 0.8


def pathwise_gradient(model, objective_value):
    parameters = [p for p in model.vae.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective_value, parameters)])


@pytest.mark.parametrize(
    "estimator", [Reparameterization(), ScoreFunction(4), MeasureValued(), DReG(), None]
)
def test_gradients_of_the_linear_gaussian_model(gaussian, estimator):
    """Of the ELBO in closed form; None is the sampled KL without the score of q."""
    exact = pathwise_gradient(gaussian, gaussian.elbo().mean())
    objective = MonteCarloELBO() if estimator is None else ELBO()
    estimator = estimator or StickingTheLanding()
    draws = gradient_draws(objective, gaussian.vae, estimator, gaussian.x)
    assert z_scores(draws, exact).abs().max() < LIMIT


def test_the_bound_has_one_gradient_whoever_estimates_it(gaussian):
    estimators = [Reparameterization(3), DReG(3), ScoreFunction(3)]
    draws = [gradient_draws(IWAE(), gaussian.vae, e, gaussian.x, copies=100) for e in estimators]
    for other in draws[1:]:
        assert z_scores(other - draws[0], 0.0).abs().max() < LIMIT


@pytest.mark.parametrize("objective", [ELBO, MonteCarloELBO])
def test_beta_weighs_the_kl(discrete, objective):
    x = binary_images(shape=discrete.shape)
    values = {b: objective(b)(discrete, Exact(), x) for b in (0.0, 1.0, 3.0)}
    for beta, terms in values.items():
        torch.testing.assert_close(terms.objective, exact_elbo(discrete, x, beta))
        torch.testing.assert_close(terms.elbo, values[1.0].objective)  # the logged one is true
        torch.testing.assert_close(terms.objective, terms.reconstruction - beta * terms.kl)


def test_without_beta_the_prior_has_no_gradient(discrete):
    x = binary_images(shape=discrete.shape)
    for beta, moves in ((0.0, False), (1.0, True)):
        discrete.zero_grad()
        ELBO(beta)(discrete, Exact(), x).objective.sum().backward()
        assert bool(discrete.latent.prior_parameters.grad.any()) is moves


def test_a_scheduled_beta_is_that_beta(discrete):
    x = binary_images(shape=discrete.shape)
    objective = ELBO(Linear(0.0, 1.0, 10))
    for step, beta in ((0, 0.0), (5, 0.5), (99, 1.0)):
        objective.beta.set_step(step)
        value = objective(discrete, Exact(), x).objective
        torch.testing.assert_close(value, exact_elbo(discrete, x, beta))


def test_free_bits_are_a_floor_for_each_variable_of_each_datum(discrete):
    x = binary_images(shape=discrete.shape)
    kl = discrete.latent.kl(discrete.encode(x))  # [B, L]
    floor = kl.median().item()
    assert (kl < floor).any() and (kl > floor).any()
    terms = ELBO(beta=2.0, free_bits=floor)(discrete, Exact(), x)
    expected = terms.reconstruction - 2 * kl.clamp_min(floor).sum(-1)
    torch.testing.assert_close(terms.objective, expected)
    torch.testing.assert_close(terms.kl, kl.sum(-1))  # what is logged is the KL


def test_below_the_free_bits_the_kl_has_no_gradient(discrete):
    x = binary_images(shape=discrete.shape)
    free = gradients(ELBO(free_bits=100.0), discrete, Exact(), x)
    torch.testing.assert_close(free, gradients(ELBO(beta=0.0), discrete, Exact(), x))
    paid = gradients(ELBO(free_bits=1e-9), discrete, Exact(), x)
    torch.testing.assert_close(paid, gradients(ELBO(), discrete, Exact(), x))
    assert not torch.allclose(free, paid)


@pytest.mark.parametrize(
    "objective",
    [
        "ELBO(beta=1.0, free_bits=0.1, aggregate_kl=0.0)",
        "MonteCarloELBO(beta=Linear(start=0.0, end=1.0, steps=10))",
        "IWAE()",
    ],
)
def test_prints_as_the_call_that_makes_it(objective):
    assert repr(eval(objective)) == objective


def aggregate(vae, x):
    """KL(mean of q || p), over the batch and the places, summed over all variables."""
    codes = vae.latent.codes(vae.encode(x))
    mean = vae.latent.places_as_data(codes).mean(0)
    prior = vae.latent.codes(vae.latent.prior())[: len(mean)]
    return vae.latent.num_places * (mean * (mean / prior).log()).sum()


@pytest.mark.parametrize("make", [discrete_vae, grid_vae])
@pytest.mark.parametrize("latent", [Categorical(1, 3, learn_prior=True), Bernoulli(1)])
def test_the_aggregate_kl_is_that_of_the_mean_posterior(make, latent):
    vae = make(copy.deepcopy(latent))
    x = binary_images(5, vae.shape)
    terms = ELBO(aggregate_kl=2.0)(vae, Exact(), x)
    without = ELBO()(vae, Exact(), x)
    expected = 2 * aggregate(vae, x)
    assert expected > 0.01
    torch.testing.assert_close((without.objective - terms.objective).mean(), expected)
    torch.testing.assert_close(terms.elbo, without.elbo)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    both = [torch.autograd.grad(t.objective.mean(), parameters) for t in (without, terms)]
    for a, b, gradient in zip(*both, wanted, strict=True):
        torch.testing.assert_close(a - b, torch.zeros_like(a) if gradient is None else gradient)


def test_the_aggregate_kl_needs_categories():
    vae = discrete_vae(Gaussian(2))
    with pytest.raises(ValueError, match="aggregate_kl needs variables with categories, Gaussian"):
        ELBO(aggregate_kl=1.0)(vae, Reparameterization(), binary_images())


@pytest.mark.parametrize("objective", [ELBO(free_bits=0.1), IWAE()])
def test_a_datum_does_not_notice_its_batch(discrete, objective):
    x = binary_images(5, discrete.shape)
    together = objective(discrete, Exact(2, MOST), x)
    alone = [objective(discrete, Exact(2, MOST), x[i : i + 1]) for i in range(5)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts))


def test_refusals():
    with pytest.raises(ValueError, match="free_bits must not be negative, got -0.1"):
        ELBO(free_bits=-0.1)
    with pytest.raises(ValueError, match="aggregate_kl must not be negative, got -1"):
        ELBO(aggregate_kl=Linear(1.0, -1.0, 10))
    for objective in (ELBO, MonteCarloELBO):
        with pytest.raises(ValueError, match="beta must not be negative, got -0.1"):
            objective(-0.1)
    with pytest.raises(ValueError, match="not a multi-sample bound"):
        IWAE()(discrete_vae(Bernoulli(3)), SumAndSample(), binary_images())


def test_the_bound_is_finite_where_the_weights_are_not():
    """exp(-1000) is zero in every float, its logarithm is not."""
    vae = discrete_vae(Bernoulli(3))
    with torch.no_grad():
        vae.output_bias.copy_(-500 * (2 * binary_images(1)[0] - 1))
    x = binary_images(8)
    values = IWAE()(vae, ScoreFunction(5), x).objective
    assert values.isfinite().all() and values.min() < math.log(1e-300)
