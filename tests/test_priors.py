"""One battery over the priors that the library has: density, draws, gradients, releases."""

import copy
import math

import pytest
import torch
import torch.distributions as td
from oracles import z_scores
from prior_cases import (
    LATENTS,
    LIMIT,
    NETWORKS,
    SHAPE,
    Positive,
    cases,
    conditional,
    make,
    parameters_of,
)
from tiny import binary_images, discrete_vae, gradients, randomize

from vae_lab import VAE, likelihoods
from vae_lab.conditions import Labels
from vae_lab.distributions import support
from vae_lab.estimators import (
    REBAR,
    DReG,
    Exact,
    GumbelSoftmax,
    Reparameterization,
    ScoreFunction,
    StickingTheLanding,
    catalog,
)
from vae_lab.explorer.edits import Explorer
from vae_lab.latents import FSQ, Bernoulli, FlowGaussian, Gaussian
from vae_lab.networks import MLP, Grid
from vae_lab.objectives import ELBO, IWAE
from vae_lab.priors import Autoregressive, Flow, Mixture, Standard, Vamp
from vae_lab.priors.base import bound
from vae_lab.variables import values


@cases
def test_density_draws_and_gradients(latent, network, prior):
    vae = make(latent, network, prior)
    p = vae.p_z()
    z = p.sample((5, 2))
    assert z.shape == (5, 2, *vae.latent.event_shape) and z.dtype == torch.float64
    log_p = p.log_prob(z)
    assert log_p.shape == (5, 2)
    torch.testing.assert_close(p.log_prob(z[3, 1]), log_p[3, 1])
    found = torch.autograd.grad(log_p.sum(), parameters_of(vae.prior))
    assert all(g.isfinite().all() for g in found)
    terms = vae(binary_images(3, SHAPE))
    terms.objective.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters_of(vae.prior))


@cases
def test_draws_have_the_density(latent, network, prior):
    draws_have_the_density(*(make(latent, network, prior, seed=i) for i in range(2)))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("prior", ["mixture", "vamp", "transformer"])
def test_draws_of_another_family_have_its_density(prior, network, monkeypatch):
    monkeypatch.setitem(LATENTS, "positive", lambda: Positive(2))
    draws_have_the_density(*(make("positive", network, prior, seed=i) for i in range(2)))


def draws_have_the_density(vae, other):
    """E_p[q / p] is 1 for any density q that is zero where p is: here a prior of another seed."""
    with torch.no_grad():
        p, q = vae.p_z(), other.p_z()
        z = p.sample((4000,))
        ratio = (q.log_prob(z) - p.log_prob(z)).clamp(max=20)
    # E_p[min(1, q / p)] = E_q[min(1, p / q)], without heavy tails.
    with torch.no_grad():
        w = q.sample((4000,))
        back = (p.log_prob(w) - q.log_prob(w)).exp().clamp(max=1)
    there = ratio.exp().clamp(max=1)
    error = math.hypot(there.std().item(), back.std().item()) / math.sqrt(4000)
    assert abs(there.mean() - back.mean()) < LIMIT * error + 1e-9
    assert 0.01 < there.mean() < 0.999  # the two are not the same


@pytest.mark.parametrize("prior", ["mixture", "vamp", "transformer"])
@pytest.mark.parametrize("latent", ["codes", "bits"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_masses_of_all_codes_sum_to_one(latent, network, prior):
    vae = make(latent, network, prior)
    z = support(vae.latent.prior())
    total = vae.p_z().log_prob(z).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-9, rtol=0)


@cases
def test_a_release_gives_it_back(latent, network, prior, tmp_path):
    vae = make(latent, network, prior, double=False)
    vae.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    z = vae.p_z().sample((3,))
    assert torch.equal(again.p_z().log_prob(z), vae.p_z().log_prob(z))
    assert repr(again.prior) == repr(vae.prior)


@cases
def test_every_estimator_that_trains_the_latent_trains_it(latent, network, prior):
    vae, x = make(latent, network, prior), binary_images(3, SHAPE)
    pathwise = [(ELBO, Reparameterization(2)), (ELBO, StickingTheLanding(2)), (IWAE, DReG(2))]
    score = [(ELBO, ScoreFunction(2)), (IWAE, ScoreFunction(2))]
    relaxed = [
        (ELBO, GumbelSoftmax(0.5)),
        (IWAE, GumbelSoftmax(0.5, num_samples=2)),
        (ELBO, REBAR()),
    ]
    kinds = {"gaussian": pathwise + score, "counts": score}
    for objective, estimator in kinds.get(latent, score + relaxed):
        terms = objective()(vae, estimator.double(), x)
        found = torch.autograd.grad(terms.objective.mean(), parameters_of(vae.prior))
        assert all(g.isfinite().all() for g in found) and any(g.any() for g in found)


def exact_gradient(vae, x):
    """Of the ELBO, summed over all states."""
    q = vae.encode(x)
    z = support(q)
    log_q = q.log_prob(z)
    elbo = (log_q.exp() * (vae.log_px_z(x, z) + vae.p_z().log_prob(z) - log_q)).sum(0)
    trained = [p for p in vae.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(elbo.mean(), trained)])


@pytest.mark.parametrize("prior", ["mixture", "vamp", "transformer"])
@pytest.mark.parametrize("estimator", [Exact(), ScoreFunction(3)], ids=lambda e: type(e).__name__)
def test_its_gradient_is_that_of_all_states(prior, estimator):
    vae, x = make("codes", "flat", prior), binary_images(3, SHAPE)
    wanted, many = exact_gradient(vae, x), x.repeat(100, 1, 1, 1)
    draws = torch.stack([gradients(ELBO(), vae, estimator.double(), many) for _ in range(40)])
    assert torch.allclose(draws[0], wanted) or z_scores(draws, wanted).abs().max() < LIMIT


UNBIASED = {
    (latent, cls.__name__): cls
    for latent in ("codes", "bits")
    for cls in catalog()
    if cls.single_sample and cls().unbiased is True
    if cls.accepts(LATENTS[latent]().prior())
}


@pytest.mark.parametrize("latent, name", UNBIASED)
def test_every_unbiased_estimator_has_the_gradient_of_all_states(latent, name):
    torch.manual_seed(0)
    vae, x = make(latent, "flat", "mixture"), binary_images(2, SHAPE)
    wanted, many = exact_gradient(vae, x), x.repeat(100, 1, 1, 1)
    estimator = UNBIASED[latent, name]().double()
    draws = torch.stack([gradients(ELBO(), vae, estimator, many) for _ in range(30)])
    assert torch.allclose(draws[0], wanted) or z_scores(draws, wanted).abs().max() < LIMIT + 0.5


@cases
def test_in_16_bits(latent, network, prior):
    vae = make(latent, network, prior, double=False)
    x = binary_images(20, SHAPE).float()
    assert vae.bfloat16().elbo(x, 3).elbo.isfinite().all()
    vae.train()(x).objective.sum().backward()


@pytest.mark.parametrize("flow", ["autoregressive", "coupling"])
def test_a_posterior_that_a_flow_bends_in_16_bits_and_of_no_data(flow):
    vae = VAE(SHAPE, MLP((4,)), FlowGaussian(2, flow), likelihoods.Bernoulli())
    assert vae.elbo(binary_images(0, SHAPE).float()).kl.shape == (0, 2)
    assert vae.bfloat16().elbo(binary_images(3, SHAPE).float()).elbo.isfinite().all()


def test_a_prior_that_was_refused_can_be_that_of_another_model():
    prior = Vamp(3)
    with pytest.raises(ValueError, match="one z each"):
        discrete_vae(FSQ((3, 3)), prior)
    assert discrete_vae(Gaussian(2), prior).prior is prior


def larger(prior):
    return VAE(SHAPE, Grid((3,)), Bernoulli(2), likelihoods.Bernoulli(), prior).at(1, 8, 8)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: conditional("codes", "flat", "vamp"),
            "the prior Vamp needs an encoder of x alone, and this model's sees y too: type prior=",
        ),
        (
            lambda: conditional("codes", "flat", "vamp", of_z=False),
            "the prior Vamp needs an encoder of x alone, and this model's sees y too: type prior=",
        ),
        (
            lambda: bound(Standard(), Gaussian(2), SHAPE, Labels(3, prior=True)),
            "the prior Standard cannot be conditioned on y: type prior=mixture",
        ),
        (
            lambda: discrete_vae(FSQ((3, 3)), Vamp(4)),
            "vamp is a mixture of posteriors, and those of FSQ have one z each: type prior=mixture",
        ),
        (
            lambda: discrete_vae(Gaussian(2), discrete_vae(Gaussian(2), Mixture(2)).prior),
            "belongs to a VAE",
        ),
        (
            lambda: larger(Autoregressive(8, 1, 2)).sample(2, temperature=0.5),
            "the prior is one of z of shape",
        ),
        (
            lambda: discrete_vae(Bernoulli(2)).sample(1, temperature=-1.0),
            "temperature must not be negative, got -1",
        ),
        (lambda: Mixture(0), "components must be at least 1, got 0"),
        (lambda: Vamp(0), "pseudo_inputs must be at least 1, got 0"),
        (lambda: Vamp(5, 6), "encoded_per_step must be from 1 to pseudo_inputs=5, got 6"),
        (lambda: Flow("spline"), "kind must be one of coupling, autoregressive, got 'spline'"),
        (lambda: Flow(transforms=0), "transforms must be a positive integer, got 0"),
        (lambda: discrete_vae(Bernoulli(2), Flow()), "a flow is over numbers, Bernoulli has bits"),
        (
            lambda: discrete_vae(Positive(2), Flow()),
            "a flow is over all numbers, Positive has those from 0 to inf: type prior=mixture or",
        ),
        (lambda: discrete_vae(Gaussian(1), Flow()), "kind=coupling needs 2 latents or more, got 1"),
        (lambda: Autoregressive(10, heads=4), "width must be a multiple of heads=4, got 10"),
        (lambda: Autoregressive(top_k=0), "top_k must be a positive integer, got 0"),
        (lambda: Autoregressive(layers=0), "layers must be a positive integer, got 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@cases
def test_a_copy_is_bound_to_the_copy(latent, network, prior):
    """As a moving average of the weights is made."""
    vae = make(latent, network, prior)
    other = copy.deepcopy(vae)
    z = vae.p_z().sample((3,))
    randomize(vae, 0.9)
    assert not torch.allclose(vae.p_z().log_prob(z), other.p_z().log_prob(z))


@cases
def test_what_the_report_and_the_explorer_draw(latent, network, prior):
    """Values for each variable, and samples by their seed, of a prior that needs its model."""
    vae = make(latent, network, prior, double=False)
    x = binary_images(6, SHAPE).float()
    explored = Explorer(vae, x)
    assert torch.isfinite(values(vae)).all()
    first, again, other = (explored.samples(3, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (3, *vae.latent.event_shape)
    assert torch.equal(first, again) and not torch.equal(first, other)
    if not vae.has_temperature:
        with pytest.raises(ValueError, match="temperature 1 only, got 0.5"):
            explored.samples(3, temperature=0.5)


class Misshapen(Standard):
    def of(self, vae, vector):
        return td.Independent(td.Normal(torch.zeros(7), 1.0), 1)


def test_a_prior_that_is_refused_leaves_the_model_as_it_was():
    vae = VAE((1, 4, 4), MLP((8,)), Gaussian(2), likelihoods.Bernoulli())
    with pytest.raises(ValueError, match="7"):
        vae.set_prior(Misshapen())
    assert vae.prior is None and vae.elbo(torch.rand(2, 1, 4, 4)).elbo.isfinite().all()
