"""What one kind of prior alone must do: mixtures, pseudo-inputs, flows and the transformer."""

import math

import pytest
import torch
from oracles import z_scores
from prior_cases import LATENTS, LIMIT, NETWORKS, SHAPE, make
from tiny import binary_images, discrete_vae, grid_vae, randomize
from torch import nn
from torch.distributions import Distribution

from vae_lab import VAE, likelihoods
from vae_lab.latents import Categorical, Gaussian
from vae_lab.networks import MLP
from vae_lab.priors import Autoregressive, Flow, Mixture, Vamp
from vae_lab.priors.base import bound


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


@pytest.mark.parametrize("prior", [Mixture(3), Autoregressive(8, 1, 2), Flow(hidden=(8,))])
def test_a_single_datum_has_units(prior):
    latent = Gaussian(2)
    prior = bound(prior, latent, SHAPE)
    prior.meet(torch.randn(1, 2))
    assert prior(None).log_prob(torch.randn(5, 2)).isfinite().all()


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


def test_on_a_grid_components_start_at_all_places():
    place = torch.arange(16.0).reshape(4, 4, 1)
    latent = Gaussian(1)
    latent.bind((4, 4))
    prior = bound(Mixture(8), latent, SHAPE)
    prior.meet(place.expand(100, 4, 4, 1))
    assert len(prior.parameters_of_each[:, 0].unique()) > 4


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


def test_a_model_that_is_made_takes_no_turn():
    vae = discrete_vae(Gaussian(2), Vamp(6, 2))
    assert vae.prior.turn == 0 and not vae.prior.posteriors.any()


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


def test_relaxed_codes_are_embedded_as_the_mixture_of_theirs():
    vae = grid_vae(Categorical(1, 3))
    prior = Autoregressive(8, 1, 1)
    prior.bind(vae.latent)
    prior.double()
    z = torch.rand(2, 2, 1, 3, dtype=torch.float64).softmax(-1)
    ends = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    mixed = (z.reshape(4, 3, 1) * prior.embedding(ends)).sum(1)
    torch.testing.assert_close(prior.embedding(z.reshape(4, 3)), mixed)
