"""Posteriors of numbers that depend on each other: density, estimators, and what that is worth."""

import copy
import math

import pytest
import torch
from oracles import z_scores
from tiny import GRID_SHAPE, SHAPE, SMALL_GRID, LinearGaussian, binary_images, gradients, randomize

import vae_lab
from vae_lab import VAE, likelihoods, variables
from vae_lab.estimators import (
    DReG,
    Reparameterization,
    ScoreFunction,
    StickingTheLanding,
    catalog,
)
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.decomposition import decompose
from vae_lab.latents import (
    CorrelatedGaussian,
    FlowGaussian,
    Gaussian,
    HierarchicalGaussian,
    Latent,
)
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO
from vae_lab.priors import Autoregressive, Flow, Mixture, Standard, Vamp

LIMIT = 4.5  # standard errors
FLOWS = ["autoregressive", "coupling"]
OF_FLOWS = pytest.mark.parametrize("kind", FLOWS)
BENT = pytest.mark.parametrize("kind", [*FLOWS, "correlated"])
KINDS = pytest.mark.parametrize("kind", [*FLOWS, "correlated", "hierarchical"])
GRIDS = pytest.mark.parametrize("grid", [False, True], ids=["flat", "grid"])


def latent(kind="autoregressive", latents=3):
    if kind == "correlated":
        return CorrelatedGaussian(latents)
    if kind == "hierarchical":
        return HierarchicalGaussian((latents - 1, 1), (5,))
    return FlowGaussian(latents, kind, transforms=2, hidden=(8,), context=4)


def make(kind="autoregressive", grid=False, prior=None, scale=0.4):
    torch.manual_seed(0)
    network, shape = (SMALL_GRID, GRID_SHAPE) if grid else (MLP((4,), "tanh"), SHAPE)
    vae = VAE(shape, network, latent(kind), likelihoods.Bernoulli(), prior)
    return randomize(vae, scale).double().eval()


def bent(vae):
    """What the encoder has in common for all x."""
    own = ("prior_parameters", "down.")
    return [p for name, p in vae.latent.named_parameters() if not name.startswith(own)]


def images(vae, count=3):
    return binary_images(count, vae.shape)


@OF_FLOWS
@GRIDS
def test_the_determinant_is_autograds_and_a_draw_is_remembered(kind, grid):
    vae = make(kind, grid)
    q = vae.encode(images(vae))
    z = q.rsample((4,))
    remembered, anew = q.log_prob(z), q.log_prob(z.clone())
    torch.testing.assert_close(remembered, anew)
    assert remembered.shape == (4, 3) and z.shape == (4, 3, *vae.latent.event_shape)
    inner = vae_lab.distributions.base(q)
    normal = torch.distributions.Normal(inner.loc, inner.scale)
    expected, places = [], inner.flow.transform(inner.context)
    u = places.inv(z)
    for row in u.detach():
        slope = torch.autograd.functional.jacobian(lambda u: places(u).sum((0, *vae_axes(u))), row)
        expected.append(normal.log_prob(row).sum(-1) - logdet(slope, vae))
    expected = torch.stack(expected).reshape(4, 3, -1).sum(-1)
    torch.testing.assert_close(anew, expected)


def vae_axes(u):
    """Those of a grid: a place depends on its own u only."""
    return range(1, u.ndim - 1)


def logdet(slope, vae):
    """Of [D, B, *grid, D] for each place."""
    return slope.movedim(0, -2).slogdet().logabsdet


@OF_FLOWS
def test_it_starts_as_the_diagonal_gaussian(kind):
    flow, plain = latent(kind).double(), Gaussian(3).double()
    parameters = torch.randn(5, flow.parameter_size, dtype=torch.float64)
    q, other = flow.distribution(parameters), plain.distribution(parameters[:, :6])
    z = torch.randn(7, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), other.log_prob(z))
    torch.testing.assert_close(q.mean, other.mean)


@KINDS
def test_the_gradient_of_a_density_is_that_of_its_parameters_also_at_its_own_draws(kind):
    """Where z is constant, the density is no function of the noise that it was drawn by."""
    vae = make(kind)
    x, trained = images(vae), [*bent(vae), *vae.head.parameters()]
    q = vae.encode(x)
    z = q.sample((2,))
    found = torch.autograd.grad(q.log_prob(z).sum(), trained)
    anew = torch.autograd.grad(vae.encode(x).log_prob(z.clone()).sum(), trained)
    assert all(torch.allclose(one, other) for one, other in zip(found, anew, strict=True))
    assert any(g.abs().max() > 1e-3 for g in found)


@KINDS
def test_a_detached_one_is_the_same_without_gradients(kind):
    vae = make(kind)
    q = vae.encode(images(vae))
    z, constant = q.rsample(), vae_lab.distributions.detach(q)
    torch.testing.assert_close(constant.log_prob(z), q.log_prob(z))
    (found,) = torch.autograd.grad(constant.log_prob(z).sum(), z, retain_graph=True)
    assert found.isfinite().all() and found.any()
    assert not constant.log_prob(z.detach()).requires_grad
    assert all(p.requires_grad for p in bent(vae))


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        ("coupling", False),
        ("autoregressive", True),
        ("correlated", False),
        ("correlated", True),
        ("hierarchical", False),
        ("hierarchical", True),
    ],
)
@pytest.mark.parametrize(
    ("objective", "estimator"),
    [
        (MonteCarloELBO(), StickingTheLanding(2)),
        (ELBO(), ScoreFunction(3)),
        (IWAE(), ScoreFunction(2)),
        (IWAE(), DReG(2)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_estimators_agree(kind, grid, objective, estimator):
    """With the plain reparameterised gradient of the same objective."""
    vae = make(kind, grid, scale=0.3)
    x = images(vae, 2)
    plain = Reparameterization(estimator.num_samples)

    def draws(estimator):
        many = x.repeat(50, 1, 1, 1)
        return torch.stack([gradients(objective, vae, estimator, many) for _ in range(40)])

    wanted, found = draws(plain), draws(estimator.double())
    error = ((wanted.var(0) + found.var(0)) / 40).sqrt()
    score = (wanted.mean(0) - found.mean(0)) / error.clamp_min(1e-12)
    if isinstance(estimator, DReG):  # its decoder's and prior's gradients are the plain ones
        score = score[error > 1e-9]
    assert score.abs().max() < LIMIT + 0.5


@pytest.mark.parametrize("kind", ["autoregressive", "correlated", "hierarchical"])
def test_every_estimator_trains_it_or_says_in_one_line_that_it_does_not(kind):
    vae = make(kind)
    x, refused = images(vae), []
    for cls in catalog():
        if not cls.single_sample:
            continue
        try:
            terms = ELBO()(vae, cls().double(), x)
        except ValueError as error:
            assert "\n" not in str(error)
            refused.append(cls.__name__)
            continue
        terms.objective.mean().backward()
        assert all(p.grad.isfinite().all() for p in bent(vae))
    assert {"MeasureValued", "REBAR", "Exact", "GumbelSoftmax"} <= set(refused)
    assert not {"Reparameterization", "StickingTheLanding", "ScoreFunction"} & set(refused)


@BENT
def test_its_bounds_lie_below_the_evidence_and_above_those_of_a_diagonal_q(kind):
    """p(z|x) of a linear model is one normal with correlations, which the diagonal has not."""
    torch.manual_seed(0)
    model = LinearGaussian(latent(kind, 2))
    other = LinearGaussian(Gaussian(2))
    with torch.no_grad():
        for p in model.vae.decoder.parameters():
            p.copy_(2 * p + 1)  # columns nearly parallel
    shared, best = model.vae.decoder.state_dict(), {}
    for one in (model, other):
        one.vae.decoder.load_state_dict(shared)
        one.vae.output_bias.data.zero_()
        one.x = model.x
        trained = [*one.vae.encoder.parameters(), *one.vae.head.parameters()]
        trained += [*one.vae.latent.parameters()]
        optimizer = torch.optim.Adam([p for p in trained if p.requires_grad], 3e-2)
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = 3e-2 * (1 - step / 300)
            optimizer.zero_grad()
            (-MonteCarloELBO()(one.vae, StickingTheLanding(4), one.x).objective.mean()).backward()
            optimizer.step()
        with torch.no_grad():
            best[one] = one.vae.elbo(one.x, 2000).elbo.mean().item()
            bound = one.vae.log_likelihood(one.x, 2000).mean().item()
        evidence = one.log_evidence().mean().item()
        assert best[one] - 0.02 < bound < evidence + 0.05
    gap, of_diagonal = evidence - best[model], evidence - best[other]
    assert of_diagonal > 0.15 and gap < of_diagonal / 2, (gap, of_diagonal)


@GRIDS
def test_the_kl_is_that_of_the_chain_rule(grid):
    """The sum is torch's; each variable's share is the mean of its conditional log-ratio."""
    vae = make("correlated", grid)
    q = vae.encode(images(vae))
    inner = vae_lab.distributions.base(q)
    p = vae_lab.distributions.base(vae.p_z())
    correlated = torch.distributions.MultivariateNormal(p.loc, p.variance.diag_embed())
    expected = torch.distributions.kl_divergence(inner, correlated).reshape(3, -1)
    found = vae.kl(q)
    torch.testing.assert_close(found.unflatten(1, (-1, 3)).sum(-1), expected)
    assert (found > 0).all() and found.shape == (3, vae.latent.num_variables)
    first = torch.distributions.Normal(inner.loc[..., 0], inner.stddev[..., 0])
    of_prior = torch.distributions.Normal(p.loc[..., 0], p.scale[..., 0])
    alone = torch.distributions.kl_divergence(first, of_prior)
    torch.testing.assert_close(found.unflatten(1, (-1, 3))[..., 0], alone.reshape(3, -1))


@GRIDS
def test_its_precision_is_the_priors_and_what_x_tells(grid):
    vae = make("correlated", grid)
    parameters = torch.randn(3, *vae.latent.grid, vae.latent.parameter_size).double()
    inner = vae_lab.distributions.base(vae.latent.distribution(parameters))
    eta, told = parameters.tensor_split([3], -1)
    u = vae.latent.directions_of_x
    precision = torch.eye(3).double() + u @ torch.nn.functional.softplus(told).diag_embed() @ u.T
    torch.testing.assert_close(inner.precision_matrix, precision)
    torch.testing.assert_close(precision @ inner.loc.unsqueeze(-1), eta.unsqueeze(-1))
    ratio = torch.linalg.eigvalsh(inner.covariance_matrix)
    assert (ratio <= 1 + 1e-12).all()  # never wider than the prior


def test_it_can_be_the_posterior_of_a_linear_model_whatever_is_missing():
    """s = 1 / sigma^2 along the decoder's own directions, and 0 of what is missing."""
    torch.manual_seed(0)
    model = LinearGaussian(CorrelatedGaussian(2, math.prod(SHAPE)))
    latent, weight = model.vae.latent, model.weight.detach()
    latent.directions_of_x.data.copy_(weight.T)
    x = model.x.flatten(1)
    seen = (torch.rand(x.shape, dtype=x.dtype) < 0.6).double()
    told = torch.where(seen > 0, math.log(math.expm1(model.sigma**-2)), -torch.inf)
    centred = (x - model.offset.detach()) * seen / model.sigma**2
    q = latent.distribution(torch.cat([centred @ weight, told], 1))
    for n, row in enumerate(seen.bool()):
        some = weight[row]
        total = some @ some.T + model.sigma**2 * torch.eye(len(some)).double()
        gain = some.T @ total.inverse()
        torch.testing.assert_close(q.mean[n], gain @ (x[n] - model.offset)[row].detach())
        torch.testing.assert_close(
            vae_lab.distributions.base(q).covariance_matrix[n],
            torch.eye(2).double() - gain @ some,
        )


@GRIDS
def test_the_decomposition_knows_that_they_are_correlated(grid):
    """Against the densities of all posteriors, as torch gives them, at as many draws."""
    vae = make("correlated", grid, scale=1.0)
    x = images(vae, 12)
    with torch.no_grad():
        q = vae.encode(x)
        found = decompose(vae.latent, q, 4000)
        z = q.sample((500,))
        own = q.log_prob(z)  # [S, N]
        mixture = torch.stack([q.log_prob(row.expand_as(z[0])) for row in z.flatten(0, 1)])
        mixture = (mixture.logsumexp(1) - math.log(12)).view(500, 12)
        information = (own - mixture).mean(1)
        inner = vae_lab.distributions.base(q)
        marginals = torch.distributions.Normal(inner.loc.flatten(1), inner.stddev.flatten(1))
        numbers = vae.latent.numbers(z).flatten(0, 1)
        marginal = marginals.log_prob(numbers.unsqueeze(1)).logsumexp(1) - math.log(12)
        prior = vae_lab.distributions.base(vae.p_z()).log_prob(z).flatten(2).flatten(0, 1)
        each = (marginal - prior).view(500, -1)
    assert found.kl == pytest.approx(vae.kl(q).sum(-1).mean().item())
    error = found.mutual_information_error + information.std().item() / 500**0.5
    assert abs(found.mutual_information - information.mean().item()) < LIMIT * error
    of_marginals = each.view(500, 12, -1).sum(-1).mean(1)
    error = found.marginal_kl_error + of_marginals.std().item() / 500**0.5
    assert abs(found.marginal_kl.sum().item() - of_marginals.mean().item()) < LIMIT * error
    assert found.total_correlation > 4 * found.total_correlation_error


@GRIDS
@pytest.mark.parametrize("kind", ["autoregressive", "hierarchical"])
def test_a_kl_is_sampled_and_free_bits_are_refused(kind, grid):
    vae = make(kind, grid)
    x = images(vae)
    assert isinstance(vae.prior, Standard)
    q = vae.encode(x.repeat(2000, 1, 1, 1))
    z = q.sample()
    expected = (q.log_prob(z) - vae.p_z().log_prob(z)).unflatten(0, (2000, 3))
    with torch.no_grad():
        kl = vae.kl(vae.encode(x.repeat(500, 1, 1, 1))).sum(-1).unflatten(0, (500, 3))
    assert z_scores(kl, expected.mean(0)).abs().max() < 2 * LIMIT
    with pytest.raises(ValueError, match="free_bits needs a KL in closed form, which this model"):
        ELBO(free_bits=0.1)(vae, Reparameterization(), x)


@pytest.mark.parametrize("prior", [None, Mixture(2), Vamp(3), Autoregressive(8, 1, 2)])
@GRIDS
@pytest.mark.parametrize("kind", ["autoregressive", "correlated", "hierarchical"])
def test_a_release_gives_it_back_and_a_second_stage_follows(kind, prior, grid, tmp_path):
    vae = make(kind, grid).float()
    if prior is not None:
        vae = vae.with_prior(copy.deepcopy(prior))
    vae.requires_grad_()  # as the release is: torch may multiply by frozen weights in another way
    vae.save_pretrained(tmp_path)
    again, x = VAE.from_pretrained(tmp_path), images(vae).float()
    assert repr(again.latent) == repr(vae.latent) and repr(again.prior) == repr(vae.prior)
    z = vae.encode(x).sample()
    assert torch.equal(again.encode(x).log_prob(z), vae.encode(x).log_prob(z))
    assert torch.equal(again.p_z().log_prob(z), vae.p_z().log_prob(z))


# A hierarchy


def level(vae, which, given):
    """The normals that a network of the latent gives."""
    mean, log_scale = getattr(vae.latent, which)[0](given).chunk(2, -1)
    return torch.distributions.Normal(mean, log_scale.exp())


@pytest.mark.parametrize("latents", [(4, 2), (20, 10), (20, 10, 5)])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_hierarchy_is_tame_at_the_start(latents, activation):
    """Far out a sigma that a level gives the next one would be tiny, or huge."""
    latent = HierarchicalGaussian(latents, activation=activation)
    q = latent.distribution(torch.zeros(2000, latent.parameter_size))
    assert 0 < latent.kl(q).mean() < 3 * sum(latents)
    assert latent.sample(1000).abs().max() < 50 and not latent.sample(3).requires_grad


@pytest.mark.parametrize("network", [MLP((16,)), SMALL_GRID], ids=["flat", "grid"])
def test_a_hierarchy_trains_as_it_is_given(network):
    x = (torch.rand(256, *GRID_SHAPE) < 0.2).float() if network is SMALL_GRID else None
    x = binary_images(256) if x is None else x
    found = vae_lab.fit(
        x,
        latent=HierarchicalGaussian((6, 4, 2)),
        network=network,
        likelihood="bernoulli",
        epochs=15,
        batch_size=32,
        seed=0,
    )
    elbo = [epoch["val/elbo"] for epoch in found.history]
    assert elbo[-1] > elbo[0] and all(math.isfinite(value) for value in elbo)


@pytest.mark.parametrize(
    "prior", [Mixture(2), Vamp(3), Autoregressive(8, 1, 2), Flow(transforms=2)]
)
def test_another_prior_leaves_that_of_the_levels_alone(prior):
    """A parameter that waits for a gradient stops a run of several processes."""
    torch.manual_seed(0)
    vae = VAE(SHAPE, MLP((4,)), latent("hierarchical"), likelihoods.Bernoulli(), prior)
    vae(binary_images(3)).objective.sum().backward()
    assert all(p.grad is not None for p in vae.parameters() if p.requires_grad)
    assert (getattr(vae.prior, "units", None) is None) == isinstance(prior, Vamp)


def test_what_the_decoder_does_not_see_is_shown_last():
    vae = make("hierarchical")
    q = vae.encode(images(vae, 30))
    assert variables.use(vae, [q]).each[2] == 0 < variables.use(vae, [q]).each[:2].min()


@GRIDS
def test_each_level_is_given_the_one_next_to_it(grid):
    """p(z1|z2) p(z2) and q(z1|x) q(z2|z1), by torch's normals; the decoder sees z1."""
    vae = make("hierarchical", grid)
    x = images(vae)
    low, log_scale = vae.head(vae.encoder(x)).chunk(2, -1)
    q, p, z = vae.encode(x), vae.p_z(), torch.randn(4, 3, *vae.latent.event_shape).double()
    below, above = z.tensor_split([2], -1)
    first = torch.distributions.Normal(low, log_scale.exp()).log_prob(below).sum(-1)
    expected = first + level(vae, "up", below).log_prob(above).sum(-1)
    torch.testing.assert_close(q.log_prob(z), expected.reshape(4, 3, -1).sum(-1))
    top_mean, top_scale = vae.latent.prior_parameters.chunk(2)
    top = torch.distributions.Normal(top_mean, top_scale.exp()).log_prob(above).sum(-1)
    expected = top + level(vae, "down", above).log_prob(below).sum(-1)
    torch.testing.assert_close(p.log_prob(z), expected.reshape(4, 3, -1).sum(-1))
    assert torch.equal(vae.decode(z), vae.decode(torch.cat([below, above + 1], -1)))


@pytest.mark.parametrize("drawn", ["prior", "posterior"])
def test_draws_of_a_hierarchy_are_of_its_density(drawn):
    """The mean of the ratio of a wider normal's density to its own is one."""
    vae = make("hierarchical")
    q = vae.p_z() if drawn == "prior" else vae.encode(images(vae, 1))
    z = q.rsample((200_000,)).detach()
    wide = torch.distributions.Normal(z.mean(0), 0.5 * z.std(0))
    ratio = (wide.log_prob(z).sum(-1) - q.log_prob(z)).exp().detach()
    assert abs(z_scores(ratio.flatten(), torch.ones(()))) < LIMIT


def test_the_evidence_of_a_linear_hierarchy_lies_just_above_its_bounds():
    torch.manual_seed(0)
    model = LinearGaussian(HierarchicalGaussian((2, 1), ()))
    latent = model.vae.latent
    with torch.no_grad():
        for layer, width in ((latent.up[0][-1], 1), (latent.down[0][-1], 2)):
            layer.weight[width:] = 0  # sigma depends on nothing
        latent.up[0][-1].bias[1:] = 1.0  # a q that is wide
        model.vae.head.weight[2:], model.vae.head.bias[2:] = 0, 1.0
        weight, bias = latent.down[0][-1].weight[:2], latent.down[0][-1].bias
        mean, log_scale = latent.prior_parameters.chunk(2)
        loc = weight @ mean + bias[:2]
        covariance = weight @ (2 * log_scale).exp().diag() @ weight.T + (2 * bias[2:]).exp().diag()
        seen = model.weight[:, :2]
        total = seen @ covariance @ seen.T + model.sigma**2 * torch.eye(len(seen)).double()
        x = model.x.flatten(1)
        evidence = torch.distributions.MultivariateNormal(
            seen @ loc + model.offset, total
        ).log_prob(x)
        bound = model.vae.log_likelihood(model.x, 100_000)
        few, many = (model.vae.log_likelihood(model.x.repeat(200, 1, 1, 1), k) for k in (1, 20))
    torch.testing.assert_close(bound, evidence, rtol=0, atol=0.05)
    assert (few.view(200, 3).mean(0) < many.view(200, 3).mean(0)).all()
    assert (many.view(200, 3).mean(0) < evidence).all()


@GRIDS
@pytest.mark.parametrize("chain", ["q", "p"])
def test_the_densities_of_many_at_once_are_those_of_each(chain, grid):
    latent, count = make("hierarchical", grid).latent, 4
    size = latent.parameter_size if chain == "q" else latent.prior_size
    family = latent.distribution if chain == "q" else latent.prior_distribution
    q = family(torch.randn(count, *latent.grid, size).double())
    z = torch.randn(2, 3, *latent.event_shape).double()
    expected = Latent.log_densities(latent, q, z)
    assert expected.shape == (2, 3, count)
    torch.testing.assert_close(latent.log_densities(q, z), expected)


@GRIDS
def test_a_temperature_scales_what_each_level_leaves(grid):
    latent = make("hierarchical", grid).latent
    cold, warm, hot = (latent.sample(5, temperature, seed=1) for temperature in (0.0, 1.0, 2.0))
    torch.testing.assert_close(cold, latent.prior().mean.expand_as(cold))
    assert not torch.equal(warm, hot) and torch.equal(warm, latent.sample(5, seed=1))
    top = [z[..., 2:] for z in (cold, warm, hot)]
    torch.testing.assert_close(top[2] - top[0], 2 * (top[1] - top[0]))


@KINDS
def test_it_is_evaluated_with_what_its_density_allows(kind):
    vae = make(kind).float()
    vae.latent.prior_parameters.data.zero_()
    found = evaluate(vae, [images(vae, 60).float()], samples=20, ais_images=2, ais_steps=10)
    assert {"elbo", "log_likelihood", "kl", "mixture_gap", "varying_units"} <= set(found.metrics)
    of_a_closed_kl = {"mutual_information", "ais_log_likelihood"} & set(found.metrics)
    assert len(of_a_closed_kl) == (2 if kind == "correlated" else 0)
    assert all(math.isfinite(metric.value) for metric in found.metrics.values())
    assert len(found.per_latent["activity"]) == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlowGaussian(flow="spline"), "flow must be one of coupling, autoregressive"),
        (lambda: FlowGaussian(1, "coupling"), "flow=coupling needs 2 latents or more, got 1"),
        (lambda: FlowGaussian(context=0), "context must be a positive integer, got 0"),
        (lambda: CorrelatedGaussian(directions=0), "directions must be a positive integer, got 0"),
        (lambda: FlowGaussian(transforms=0), "transforms must be a positive integer, got 0"),
        (lambda: HierarchicalGaussian((3,)), r"two levels or more, got \[3\]: use Gaussian"),
        (lambda: HierarchicalGaussian(3), "latents must be a non-empty sequence of positive int"),
        (lambda: HierarchicalGaussian(activation="sine"), "activation must be one of relu, "),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()
