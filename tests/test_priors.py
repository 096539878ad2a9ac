"""One battery over the priors that the library has: density, draws, gradients, releases."""

import copy
import itertools
import math

import pytest
import torch
import torch.distributions as td
from oracles import z_scores
from tiny import binary_images, discrete_vae, gradients, grid_vae, randomize
from torch import nn
from torch.distributions import Distribution

from vae_lab import VAE, fit_prior, likelihoods
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
from vae_lab.evaluation.evidence import enumerated
from vae_lab.explorer.edits import Explorer
from vae_lab.latents import FSQ, Bernoulli, Categorical, FlowGaussian, Gaussian, Latent, Poisson
from vae_lab.networks import MLP, Grid
from vae_lab.objectives import ELBO, IWAE
from vae_lab.priors import Autoregressive, Flow, Mixture, Standard, Vamp
from vae_lab.priors.base import bound
from vae_lab.variables import values

LIMIT = 4.5  # standard errors
SHAPE = (1, 3, 3)
LATENTS = {
    "gaussian": lambda: Gaussian(2),
    "codes": lambda: Categorical(2, 3),
    "bits": lambda: Bernoulli(2),
    "counts": lambda: Poisson(2),
}
NETWORKS = {"flat": MLP((4,), "tanh"), "grid": Grid((3,), activation="tanh")}
PRIORS = {
    "mixture": lambda: Mixture(3),
    "vamp": lambda: Vamp(4),
    "coupling": lambda: Flow("coupling", 3, (8,)),
    "autoregressive flow": lambda: Flow("autoregressive", 2, (8,)),
    "transformer": lambda: Autoregressive(8, 2, 2, components=3),
}
CASES = [
    pytest.param(latent, network, prior, id=f"{latent} {network} {prior}")
    for latent, network, prior in itertools.product(LATENTS, NETWORKS, PRIORS)
    if latent == "gaussian" or not isinstance(PRIORS[prior](), Flow)
]
cases = pytest.mark.parametrize("latent, network, prior", CASES)


def make(latent, network, prior, double=True, seed=0):
    torch.manual_seed(seed)
    vae = VAE(SHAPE, NETWORKS[network], LATENTS[latent](), likelihoods.Bernoulli(), PRIORS[prior]())
    randomize(vae, 0.4)
    return vae.double().eval() if double else vae.eval()


def parameters_of(prior):
    return [p for p in prior.parameters() if p.requires_grad]


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


class Positive(Latent):
    """Numbers that a Gaussian cannot have."""

    def __init__(self, latents):
        super().__init__((latents,), 2 * latents, learn_prior=False)

    def distribution(self, parameters):
        return self.independent(td.Gamma(*parameters.exp().chunk(2, -1), validate_args=False))


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


@pytest.mark.parametrize("network", NETWORKS)
def test_a_mixture_starts_around_the_draws_that_it_met(network):
    """With their mean and variance, and so nearer to two clusters than one normal is."""
    torch.manual_seed(0)
    latent, likelihood = Gaussian(2), likelihoods.Bernoulli()
    vae = VAE(SHAPE, NETWORKS[network], latent, likelihood, Mixture(50)).eval()
    centres = torch.tensor([[3.0, -1.0], [-3.0, 2.0]])[torch.randint(2, (400, *vae.latent.grid))]
    z = centres + 0.3 * torch.randn_like(centres)
    vae.prior.meet(z)
    p, rows = vae.p_z(), z.flatten(0, -2)
    draws = p.sample((4000,)).flatten(0, -2)
    torch.testing.assert_close(draws.mean(0), rows.mean(0), rtol=0, atol=0.7)
    torch.testing.assert_close(draws.std(0), rows.std(0), rtol=0.1, atol=0)
    prior = Mixture(50)
    few = VAE(SHAPE, NETWORKS[network], Gaussian(2), likelihoods.Bernoulli(), prior)
    few.prior.meet(z[:7])  # of which some would start two components each
    assert len(prior.parameters_of_each.unique(dim=0)) == 50
    of_one = torch.distributions.Normal(rows.mean(0), rows.std(0)).log_prob(z)
    assert p.log_prob(z).mean() > of_one.flatten(1).sum(1).mean() + 0.1


@pytest.mark.parametrize("prior", ["coupling", "autoregressive flow", "transformer"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_units_of_numbers_are_those_of_the_draws_that_it_met(network, prior):
    vae = make("gaussian", network, prior)
    z = vae.p_z().sample((500,))
    before = vae.p_z().log_prob(z)
    scale, shift = torch.tensor([3.0, 0.5]).double(), torch.tensor([-2.0, 7.0]).double()
    vae.prior.meet(shift + scale * torch.randn(20_000, 4 if network == "grid" else 1, 2).double())
    places = 4 if network == "grid" else 1
    jacobian = places * vae.prior.units.scale.log().sum()
    moved = vae.prior.units.inverse(z)
    torch.testing.assert_close(vae.p_z().log_prob(moved), before - jacobian)
    torch.testing.assert_close(vae.prior.units.scale, scale, rtol=0.05, atol=0)
    torch.manual_seed(1)
    drawn = vae.p_z().sample((500,))
    assert (drawn.mean(0) - shift).abs().max() < 3 * scale.max()


# Mixtures


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_one_component_is_the_latents_own_prior(latent, network):
    latent = LATENTS[latent]()
    vae = VAE(SHAPE, NETWORKS[network], latent, likelihoods.Bernoulli(), Mixture(1)).double()
    z = latent.prior().sample((10,))
    torch.testing.assert_close(vae.p_z().log_prob(z), latent.prior().log_prob(z))
    x = binary_images(2, SHAPE).repeat(5000, 1, 1, 1)
    with torch.no_grad():
        q = vae.encode(x)
        sampled = q.log_prob(z := q.sample()) - vae.p_z().log_prob(z)
        closed = latent.kl(q).flatten(1).sum(1)
    assert z_scores(sampled.unflatten(0, (5000, 2)), closed[:2]).abs().max() < LIMIT


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_density_of_each_component_is_its_own(latent, network):
    """Also of components far from zero and so narrow that squares of single precision say nothing,
    and of a relaxed z."""
    vae = VAE(SHAPE, NETWORKS[network], LATENTS[latent](), likelihoods.Bernoulli())
    size = vae.latent.parameter_size
    parameters = 5 * torch.randn(6, *vae.latent.grid, size)
    if latent == "gaussian":
        parameters = torch.tensor([30.0] * 2 + [-5.0] * 2) + torch.randn_like(parameters)
    q = vae.latent.distribution(parameters.double())
    z = q.sample((2,))
    if latent in ("codes", "bits"):
        z = torch.cat([z, torch.rand_like(z)])
    found = vae.latent.log_densities(q, z)
    each = [q.log_prob(z[:, [n]].expand(z.shape)) for n in range(6)]
    torch.testing.assert_close(found, torch.stack(each, 1))
    assert found.shape == (len(z), 6, 6) and found.dtype == z.dtype
    single = vae.latent.distribution(parameters), z.float()
    expected = [single[0].log_prob(single[1][:, [n]].expand(z.shape)) for n in range(6)]
    found = vae.latent.log_densities(*single)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-4, atol=1e-3)


def test_a_vamp_prior_of_one_datum_is_its_posterior():
    prior, x = Vamp(1), binary_images(1, SHAPE)
    vae = randomize(VAE(SHAPE, MLP((4,)), Gaussian(3), likelihoods.Bernoulli(), prior).double())
    prior.start(x)
    torch.testing.assert_close(prior.inputs.detach(), x)
    assert vae.kl(vae.encode(x)).abs().max() < 1e-12


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("latent", LATENTS)
def test_pseudo_inputs_in_turn_have_the_density_and_the_gradient_of_all(latent, network):
    torch.manual_seed(0)
    parts = NETWORKS[network], LATENTS[latent](), likelihoods.Bernoulli()
    vae = randomize(VAE(SHAPE, *parts, Vamp(6, encoded_per_step=2)).double(), 0.4)
    z = vae.eval().p_z().sample((5,))
    trained = [*vae.encoder.parameters(), *vae.head.parameters(), vae.prior.inputs]

    def found(training):
        vae.train(training)
        density = vae.p_z().log_prob(z)
        return density.detach(), torch.autograd.grad(density.sum(), trained)

    all_of_them, gradient = found(training=False)
    for _ in range(3):  # a whole round, after which no posterior is an old one
        vae.train().p_z()
    turns = [found(training=True) for _ in range(3)]
    for density, _ in turns:
        torch.testing.assert_close(density, all_of_them)
    for known, *parts in zip(gradient, *(turn for _, turn in turns), strict=True):
        torch.testing.assert_close(sum(parts) / 3, known)
    assert not torch.allclose(turns[0][1][-1], turns[1][1][-1])
    assert torch.equal(found(training=False)[0], all_of_them)


def test_the_turns_go_on_where_they_were_from_a_checkpoint():
    def fresh():
        prior = Vamp(5, encoded_per_step=2)
        return VAE(SHAPE, MLP((4,)), Gaussian(3), likelihoods.Bernoulli(), prior)

    vae, other = randomize(fresh()), fresh()
    z = torch.randn(4, 3)
    vae.p_z()
    other.load_state_dict(vae.state_dict())
    for module in (vae, other):
        torch.manual_seed(1)
        randomize(module)
    for _ in range(4):
        assert torch.equal(vae.p_z().log_prob(z), other.p_z().log_prob(z))


def test_pseudo_inputs_are_taken_evenly_from_the_data():
    prior = Vamp(3)
    VAE(SHAPE, MLP((4,)), Gaussian(3), likelihoods.Bernoulli(), prior)
    x = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, *SHAPE)
    prior.start(x)
    assert prior.inputs[:, 0, 0, 0].tolist() == [0, 2, 4]
    prior.start(x[:2])  # fewer than there are pseudo-inputs
    starts = prior.inputs.detach()
    assert torch.equal(starts[::2, 0, 0, 0], torch.tensor([0.0, 1.0]))
    assert starts[1].any() and starts[1].abs().max() < 1  # next to its twin, not upon it


# Flows


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_a_flow_starts_as_the_standard_normal_and_its_determinant_is_autograds(kind):
    prior = Flow(kind, 3, (8,))
    VAE(SHAPE, MLP((4,)), Gaussian(4), likelihoods.Bernoulli(), prior)
    prior.double()
    z = torch.randn(6, 4, dtype=torch.float64)
    standard = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    torch.testing.assert_close(prior(None).log_prob(z), standard)
    randomize(prior.flow, 0.5)
    flow = prior.flow()
    for datum in z:
        slope = torch.autograd.functional.jacobian(flow.transform, datum)
        expected = flow.base.log_prob(flow.transform(datum)) + slope.slogdet().logabsdet
        torch.testing.assert_close(prior(None).log_prob(datum), expected)
    assert not torch.allclose(prior(None).log_prob(z), standard)


def test_zuko_leaves_torchs_checks_of_arguments_on():
    before = Distribution._validate_args  # another library may have changed it
    Distribution.set_default_validate_args(True)
    Flow("coupling", 2, (8,)).bind(Gaussian(2))
    kept = Distribution._validate_args
    Distribution.set_default_validate_args(before)
    assert kept


def test_the_temperature_of_a_flow_is_that_of_its_normal():
    prior = Flow("coupling", 2, (8,))
    prior.bind(Gaussian(3))
    randomize(prior.flow)
    cold = prior.sample(4, 0.0)
    assert torch.equal(cold, cold[:1].expand(4, 3))
    assert torch.equal(prior.sample(4, 1.0, seed=2), prior.sample(4, 1.0, seed=2))


# The transformer


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_depends_on_those_before_it_only(latent, network):
    prior = make(latent, network, "transformer").prior
    steps = prior._steps
    z = torch.rand(steps.length, math.prod(steps.shape), dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(prior.parameters_of, z)  # [T, P, T, size]
    depends = slope.abs().sum((1, 3)) > 0
    assert torch.equal(depends, torch.ones_like(depends).tril(-1))


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_cache_changes_nothing(latent, network):
    vae = make(latent, network, "transformer")
    prior, steps = vae.prior, vae.prior._steps
    z = vae.p_z().sample((3,))
    cut = steps.cut(z).flatten(2)
    whole, cache, last = prior.parameters_of(cut), prior.room(3), None
    for number in range(steps.length):
        found = prior.next_parameters(number, last, cache)
        torch.testing.assert_close(found, whole[:, number])
        last = cut[:, number]
    cold = prior.sample(2, temperature=0.0)
    again = steps.cut(cold)
    likeliest = [
        steps.draw(parameters, 0.0, None) if not steps.components else None
        for parameters in prior.parameters_of(again.flatten(2)).unbind(1)
    ]
    if latent in ("codes", "bits"):
        assert torch.equal(torch.stack(likeliest, 1), again)
    assert torch.equal(cold[0], cold[1]) or latent in ("gaussian", "counts")


def test_codes_are_drawn_from_the_likeliest_only():
    vae = discrete_vae(Categorical(1, 5), Autoregressive(8, 1, 1, top_k=2))
    nn.init.zeros_(vae.prior.head.weight)
    with torch.no_grad():
        vae.prior.head.bias.copy_(torch.tensor([0.0, 2.0, 1.0, -1.0, 0.5]))
    drawn = vae.latent.numbers(vae.p_z().sample((500,)))
    assert sorted(drawn.unique().tolist()) == [1, 2]


def test_of_equal_codes_no_more_than_asked_for_are_drawn():
    vae = discrete_vae(Categorical(1, 9), Autoregressive(8, 1, 1, top_k=3))
    nn.init.zeros_(vae.prior.head.weight), nn.init.zeros_(vae.prior.head.bias)
    assert len(vae.latent.numbers(vae.p_z().sample((500,))).unique()) == 3


def test_names_above_256_are_drawn_in_16_bits():
    """Of which bfloat16 has only every second one."""
    torch.manual_seed(0)
    vae = discrete_vae(Categorical(1, 700), Autoregressive(8, 1, 1)).bfloat16()
    nn.init.zeros_(vae.prior.head.weight), nn.init.zeros_(vae.prior.head.bias)
    z = vae.p_z().sample((3000,))
    assert torch.equal(z.sum(-1), torch.ones_like(z[..., 0]))
    assert (vae.latent.numbers(z.float()) % 2 == 1).float().mean() > 0.4


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


def test_on_a_grid_components_start_at_all_places():
    place = torch.arange(16.0).reshape(4, 4, 1)
    latent = Gaussian(1)
    latent.bind((4, 4))
    prior = bound(Mixture(8), latent, SHAPE)
    prior.meet(place.expand(100, 4, 4, 1))
    assert len(prior.parameters_of_each[:, 0].unique()) > 4


@pytest.mark.parametrize("prior", [Mixture(3), Autoregressive(8, 1, 2), Flow(hidden=(8,))])
def test_a_single_datum_has_units(prior):
    latent = Gaussian(2)
    prior = bound(prior, latent, SHAPE)
    prior.meet(torch.randn(1, 2))
    assert prior(None).log_prob(torch.randn(5, 2)).isfinite().all()


def test_a_prior_that_was_refused_can_be_that_of_another_model():
    prior = Vamp(3)
    with pytest.raises(ValueError, match="one z each"):
        discrete_vae(FSQ((3, 3)), prior)
    assert discrete_vae(Gaussian(2), prior).prior is prior


def test_a_model_that_is_made_takes_no_turn():
    vae = discrete_vae(Gaussian(2), Vamp(6, 2))
    assert vae.prior.turn == 0 and not vae.prior.posteriors.any()


def test_relaxed_codes_are_embedded_as_the_mixture_of_theirs():
    vae = grid_vae(Categorical(1, 3))
    prior = Autoregressive(8, 1, 1)
    prior.bind(vae.latent)
    prior.double()
    z = torch.rand(2, 2, 1, 3, dtype=torch.float64).softmax(-1)
    ends = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    mixed = (z.reshape(4, 3, 1) * prior.embedding(ends)).sum(1)
    torch.testing.assert_close(prior.embedding(z.reshape(4, 3)), mixed)


# Given y

GIVEN = [case for case in CASES if case.values[2] != "vamp"]
given_y = pytest.mark.parametrize("latent, network, prior", GIVEN)


def conditional(latent, network, prior, classes=3, seed=0, of_z=True):
    torch.manual_seed(seed)
    parts = NETWORKS[network], LATENTS[latent](), likelihoods.Bernoulli(), PRIORS[prior]()
    return VAE(SHAPE, *parts, Labels(classes, prior=of_z)).double().eval()


@given_y
def test_given_y_it_starts_as_that_of_no_y(latent, network, prior):
    vae = conditional(latent, network, prior)
    plain = make(latent, network, prior)
    own, known = vae.prior.state_dict(), plain.prior.state_dict()
    for name, value in own.items():
        if name in known and known[name].shape != value.shape:  # a flow's network, which sees y
            value.copy_(torch.cat([known[name], torch.zeros_like(value)], 1)[:, : value.shape[1]])
        elif name in known:
            value.copy_(known[name])
    z = plain.p_z().sample((4,))
    for y in range(3):
        torch.testing.assert_close(vae.p_z(y).log_prob(z), plain.p_z().log_prob(z))


@given_y
def test_given_y_each_has_a_density_and_draws_of_its_own(latent, network, prior):
    vae = randomize(conditional(latent, network, prior), 0.5)
    y, x = torch.tensor([2, 0, 1]), binary_images(3, SHAPE)
    p = vae.p_z(y)
    z = p.sample((4000,))
    assert z.shape == (4000, 3, *vae.latent.event_shape)
    log_p = p.log_prob(z)
    each = torch.stack([vae.p_z(int(one)).log_prob(z[:, n]) for n, one in enumerate(y)], 1)
    torch.testing.assert_close(log_p, each)
    # E_p[min(1, q / p)] = E_q[min(1, p / q)], of the priors given two y
    one, other = vae.p_z(0), vae.p_z(1)
    there = (other.log_prob(z[:, 1]) - one.log_prob(z[:, 1])).exp().clamp(max=1)
    back = (one.log_prob(z[:, 2]) - other.log_prob(z[:, 2])).exp().clamp(max=1)
    error = math.hypot(there.std().item(), back.std().item()) / math.sqrt(4000)
    assert abs(there.mean() - back.mean()) < LIMIT * error + 1e-9 and there.mean() < 0.99
    terms = vae(x, y=y)
    terms.objective.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters_of(vae.prior))
    if prior == "mixture":  # both of what it moves
        weights, parameters = vae.prior.shift.weight.grad.unflatten(0, (3, -1)).tensor_split([1], 1)
        assert weights.any() and parameters.any()
    of_y = vae.given(y)
    assert of_y.kl(of_y.encode(x)).shape == (3, vae.latent.num_variables)


@given_y
def test_given_y_a_release_gives_it_back_and_draws(latent, network, prior, tmp_path):
    vae = randomize(conditional(latent, network, prior), 0.5).float()
    vae.save_pretrained(tmp_path)
    again, y = VAE.from_pretrained(tmp_path), torch.tensor([2, 0])
    assert not hasattr(again.condition, "to_prior")
    z = vae.p_z(y).sample()
    assert torch.equal(again.p_z(y).log_prob(z), vae.p_z(y).log_prob(z))
    assert again.sample(2, y).shape == again.sample(2, 1).shape == (2, *SHAPE)
    if vae.has_temperature:
        assert again.sample(2, y, temperature=0.5).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="the model is conditional, it needs y"):
        again.sample(2)


@pytest.mark.parametrize("prior", ["mixture", "transformer"])
def test_given_y_its_bound_is_that_of_all_states(prior):
    vae = randomize(conditional("codes", "flat", prior), 0.5)
    x, y = binary_images(3, SHAPE), torch.tensor([2, 0, 1])
    of_y = vae.given(y)
    q = of_y.encode(x)
    z = support(q)
    log_q, log_p = q.log_prob(z), of_y.p_z().log_prob(z)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(3, dtype=torch.float64))
    expected = (log_q.exp() * (of_y.log_px_z(x, z) + log_p - log_q)).sum(0)
    torch.testing.assert_close(ELBO()(vae, Exact().double(), x, y).objective, expected)
    evidence = enumerated(of_y, x)
    torch.testing.assert_close(evidence, (of_y.log_px_z(x, z) + log_p).logsumexp(0))


@pytest.mark.parametrize("prior", ["mixture", "coupling", "transformer"])
def test_given_y_classes_are_told_apart(prior):
    """Two classes whose posteriors lie on two sides: the prior learns whose is which."""
    torch.manual_seed(0)
    vae = conditional("gaussian", "flat", prior, classes=2)
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name.startswith("prior."))
    y = torch.arange(64) % 2
    z = torch.randn(64, 2).double() + (4.0 * y - 2).unsqueeze(-1)
    optimizer = torch.optim.Adam(parameters_of(vae.prior), 0.05)
    for _ in range(80):
        optimizer.zero_grad()
        (-vae.p_z(y).log_prob(z).mean()).backward()
        optimizer.step()
    for label, sign in ((0, -1), (1, 1)):
        drawn = vae.given(label).draw(500)
        assert ((drawn.mean(-1) * sign) > 0).double().mean() > 0.9


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


def test_a_second_stage_of_a_conditional_model_asks_for_labels():
    vae = conditional("codes", "flat", "mixture")
    with pytest.raises(ValueError, match="the model is conditional, it needs y, whole numbers, 0 "):
        fit_prior(vae, binary_images(6, SHAPE), Mixture(2), epochs=1)
