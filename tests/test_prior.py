"""A prior from outside, and more levels of z than a VAE has, against enumeration."""

import math

import pytest
import torch
import torch.distributions as D
from oracles import z_scores
from tiny import LinearGaussian, binary_images, discrete_vae, gradients, randomize
from torch import nn

from vae_lab.distributions import support
from vae_lab.estimators import DReG, Exact, Reparameterization, ScoreFunction, StickingTheLanding
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.evidence import annealed, enumerated
from vae_lab.explorer.edits import Explorer
from vae_lab.latents import Bernoulli, Gaussian
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO
from vae_lab.priors import Prior
from vae_lab.vae import Level

LIMIT = 4.5  # standard errors


class Twofold(Prior):
    """Bits that depend on each other: no KL in closed form."""

    def bind(self, latent):
        self.weights = nn.Parameter(torch.randn(2))
        self.logits = nn.Parameter(2 * torch.randn(2, *latent.event_shape))

    def forward(self, condition):
        bits = D.Independent(D.Bernoulli(logits=self.logits, validate_args=False), 1)
        weights = D.Categorical(logits=self.weights, validate_args=False)
        return D.MixtureSameFamily(weights, bits, validate_args=False)


class Shifted(Prior):
    """A normal distribution, as a latent with `learn_prior` has it in closed form."""

    def bind(self, latent):
        self.parameters_of_it = nn.Parameter(torch.zeros(latent.parameter_size))

    def forward(self, condition):
        mean, log_scale = self.parameters_of_it.chunk(2, -1)
        return D.Independent(D.Normal(mean, log_scale.exp(), validate_args=False), 1)


class Narrow(Prior):
    """Of two variables, whatever the latent has."""

    def forward(self, condition):
        return bernoulli(torch.zeros(2))


@pytest.fixture
def bits():
    return discrete_vae(Bernoulli(3), Twofold())


@pytest.fixture
def pair():
    """The same model twice: its prior is the latent's own, and a module."""
    own = LinearGaussian(Gaussian(2, learn_prior=True))
    other = LinearGaussian(Gaussian(2), Shifted())
    state = own.vae.state_dict()
    state["prior.parameters_of_it"] = state["latent.prior_parameters"]
    other.vae.load_state_dict(state)
    other.x = own.x
    return own, other


def log_weights(vae, x, beta=1.0):
    """log q(z|x) and log p(x|z) + beta (log p(z) - log q(z|x)) of every state, [S, B]."""
    q = vae.encode(x)
    z = support(q)
    log_q = q.log_prob(z)
    return log_q, vae.log_px_z(x, z) + beta * (vae.prior(None).log_prob(z) - log_q)


def elbo(vae, x, beta=1.0):
    log_q, log_w = log_weights(vae, x, beta)
    return (log_q.exp() * log_w).sum(0)


def test_the_bounds_of_a_model_with_its_own_prior_are_those_of_all_its_states(bits):
    x = binary_images()
    for objective in (ELBO(), MonteCarloELBO(), ELBO(0.3), MonteCarloELBO(0.3)):
        terms = objective(bits, Exact(), x)
        torch.testing.assert_close(terms.objective, elbo(bits, x, objective.beta.value.item()))
        torch.testing.assert_close(terms.elbo, elbo(bits, x))
        torch.testing.assert_close(terms.reconstruction, elbo(bits, x, 0.0))
        torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)
    terms = IWAE()(bits, Exact(1), x)
    torch.testing.assert_close(terms.objective, elbo(bits, x))
    torch.testing.assert_close(terms.elbo, elbo(bits, x))


def test_no_data_have_no_kl(bits):
    """What a short last batch leaves a process to validate."""
    bound = bits.elbo(binary_images(0))
    assert bound.elbo.shape == (0,) and bound.kl.shape == (0, 3)


@pytest.mark.parametrize("estimator", [ScoreFunction(3), Exact()])
def test_gradients_reach_the_prior(bits, estimator):
    x = binary_images()
    parameters = [p for p in bits.parameters() if p.requires_grad]
    exact = torch.autograd.grad(elbo(bits, x).mean(), parameters)
    exact = torch.cat([g.flatten() for g in exact])
    assert all(p.requires_grad for p in bits.prior.parameters())
    many = x.repeat(100, 1, 1, 1)
    draws = torch.stack([gradients(ELBO(), bits, estimator.double(), many) for _ in range(40)])
    assert z_scores(draws, exact).abs().max() < LIMIT or torch.allclose(draws[0], exact)


def test_what_is_measured_is_what_all_states_say(bits):
    x = binary_images()
    evidence = sum(log_weights(bits, x)).logsumexp(0)
    torch.testing.assert_close(enumerated(bits, x), evidence)
    many = x.repeat(50, 1, 1, 1)
    values = bits.log_likelihood(many, 1000).unflatten(0, (50, -1))
    assert z_scores(values, evidence).abs().max() < LIMIT
    bound = bits.elbo(x.repeat(4000, 1, 1, 1))
    assert z_scores(bound.elbo.detach().unflatten(0, (4000, -1)), elbo(bits, x)).abs().max() < LIMIT
    assert bound.kl.shape == (12_000, 3)
    torch.testing.assert_close(bound.elbo, bound.reconstruction - bound.kl.sum(-1))


def test_samples_are_draws_of_that_prior(bits):
    torch.manual_seed(1)
    expected = bits.likelihood.mean(bits.decode(bits.prior(None).sample((5,))))
    torch.manual_seed(1)
    assert torch.equal(bits.sample(5), expected)


@pytest.mark.parametrize("estimator", [Reparameterization(2), StickingTheLanding(2), DReG(2)])
@pytest.mark.parametrize("objective", [MonteCarloELBO(), IWAE()], ids=lambda o: type(o).__name__)
def test_a_module_that_is_the_latents_prior_changes_nothing(pair, objective, estimator):
    if isinstance(objective, IWAE) and not estimator.multi_sample:
        return
    terms = []
    for model in pair:
        torch.manual_seed(1)
        terms.append(objective(model.vae, estimator, model.x))
    torch.testing.assert_close(terms[0].objective, terms[1].objective)
    for term in terms:
        term.objective.sum().backward()
    own, other = (model.vae for model in pair)
    wanted, found = own.latent.prior_parameters.grad, other.prior.parameters_of_it.grad
    torch.testing.assert_close(wanted, found)


def test_its_sampled_kl_is_the_closed_form_on_average(pair):
    own, other = pair
    x = other.x.repeat(20_000, 1, 1, 1)
    terms = ELBO()(other.vae, Reparameterization(), x)
    for values, exact in (
        (terms.objective, own.elbo()),
        (terms.kl, own.vae.latent.kl(own.vae.encode(own.x)).sum(-1)),
    ):
        values = values.detach().unflatten(0, (20_000, -1))
        assert z_scores(values, exact.detach()).abs().max() < LIMIT
    found = annealed(other.vae, other.x.repeat(40, 1, 1, 1)).estimate.unflatten(0, (40, -1))
    assert z_scores(found, own.log_evidence().detach()).abs().max() < LIMIT


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda vae, x: ELBO(free_bits=0.1)(vae, Exact(), x), "free_bits needs a KL in closed"),
        (
            lambda vae, x: Explorer(vae, x).samples(2, 0.5),
            "samples of this model have temperature 1 only, got 0.5",
        ),
        (lambda vae, x: vae.save_pretrained("x"), "the prior Twofold could not be loaded from a"),
        (
            lambda vae, x: discrete_vae(Bernoulli(3, learn_prior=True), Twofold()),
            "the prior Twofold replaces the latent's own, which learn_prior=true would train",
        ),
        (
            lambda vae, x: discrete_vae(Bernoulli(3), nn.Linear(1, 1)),
            "prior must be a vae_lab.priors.Prior, got Linear: derive it from Prior",
        ),
        (
            lambda vae, x: discrete_vae(Bernoulli(3), Narrow()),
            r"Narrow must have batch shape \[\] and event shape \[3\], got \[\] and \[2\]",
        ),
    ],
)
def test_what_a_prior_does_not_go_with_is_one_line(bits, use, message):
    with pytest.raises(ValueError, match=message):
        use(bits, binary_images())


def test_draws_of_a_seed_are_the_same_and_disturb_no_others(bits):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    draws = [bits.prior.sample(50, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    assert draws[0].shape == (50, 3) and set(draws[0].unique().tolist()) == {0, 1}
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_the_split_of_a_sampled_kl_is_that_of_the_closed_form(pair):
    """Mutual information and total correlation know no prior; the rest is all marginals."""
    found = []
    for model in pair:
        x = model.x.repeat(20, 1, 1, 1) + 0.1 * torch.arange(60.0).reshape(60, 1, 1, 1) / 60
        x = x.clamp(0, 1)
        found.append(evaluate(model.vae.float(), [x.float()], parts=["split"]))
    own, other = (f.metrics for f in found)
    # The latents' own priors differ, to which both are measured: the same up to their noise.
    for name in ("mutual_information", "total_correlation"):
        error = math.hypot(own[name].standard_error, other[name].standard_error)
        assert abs(own[name].value - other[name].value) < LIMIT * error + 1e-3
    rest, parts = other["aggregate_kl"], [own["total_correlation"], own["marginal_kl"]]
    error = math.hypot(rest.standard_error, *(part.standard_error for part in parts))
    assert 0 < rest.standard_error < 1
    assert abs(rest.value - sum(part.value for part in parts)) < LIMIT * error
    assert own["kl"].value == pytest.approx(other["kl"].value, rel=0.05)


def test_what_only_a_product_over_the_variables_has_is_left_out_with_a_reason(bits):
    x = binary_images(60).float()
    own = evaluate(discrete_vae(Bernoulli(3)).float(), [x], samples=10)
    found = evaluate(bits.float(), [x], samples=10)
    gone = {"marginal_kl", "prior_gap", "active_units"}
    assert gone <= own.metrics.keys()
    assert found.metrics.keys() == own.metrics.keys() - gone | {"aggregate_kl"}
    assert "this prior has no KL of each variable" in found.metrics["aggregate_kl"].note
    assert found.metrics["kl"].note == "KL(q(z|x) || p(z)), sampled"
    assert {"kl", "marginal_kl"} == own.per_latent.keys() - found.per_latent.keys()
    assert "posterior collapse" in {d.name for d in found.diagnosis}
    assert all(math.isfinite(metric.value) for metric in found.metrics.values())


def test_chains_that_start_at_the_prior_need_the_latents_own(pair):
    with pytest.raises(ValueError, match="start=prior needs the latent's own prior"):
        annealed(pair[1].vae, pair[1].x, start="prior")


# Two levels


class TwoLevels(nn.Module):
    """Two bits, and three that depend on them: what an objective needs of a VAE, and no more."""

    def __init__(self, closed=True):
        super().__init__()
        self.closed = closed
        self.upper, self.lower = nn.Linear(4, 2), nn.Linear(6, 3)
        self.below, self.decoder = nn.Linear(2, 3), nn.Linear(5, 4)
        randomize(self.double(), 1.0)

    def images(self, x, first_only=False):
        return x

    def infer(self, x):
        q1, p1 = bernoulli(self.upper(x)), bernoulli(x.new_zeros(2))

        def below(z1):
            h = torch.cat([z1, x.expand(*z1.shape[:-1], 4)], -1)
            q2, p2 = bernoulli(self.lower(h)), bernoulli(self.below(z1))
            return self._level(q2, p2, lambda z2: self.log_px(x, z1, z2))

        return self._level(q1, p1, below)

    def _level(self, q, p, below):
        def kl():
            return D.kl_divergence(q.base_dist, p.base_dist.expand(q.base_dist.batch_shape))

        return Level(q, lambda: p, kl if self.closed else None, q.base_dist.logits, below)

    def log_px(self, x, z1, z2):
        logits = self.decoder(torch.cat([z1.expand(*z2.shape[:-1], 2), z2], -1))
        return bernoulli(logits).log_prob(x)

    def elbo(self, x, beta=1.0):
        """By brute force, [B]."""
        top = self.infer(x)
        z1 = support(top.q)
        middle = top.below(z1)
        z2 = support(middle.q)
        log_q = top.q.log_prob(z1) + middle.q.log_prob(z2)
        log_p = top.p().log_prob(z1) + middle.p().log_prob(z2)
        return (log_q.exp() * (middle.below(z2) + beta * (log_p - log_q))).sum((0, 1))


def bernoulli(logits):
    return D.Independent(D.Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("objective", [ELBO(), ELBO(0.3), MonteCarloELBO(), MonteCarloELBO(2.0)])
def test_the_elbo_of_two_levels_is_that_of_all_their_states(objective, closed):
    model, x = TwoLevels(closed), torch.rand(3, 4, dtype=torch.float64).round()
    terms = objective(model, Exact(), x)
    torch.testing.assert_close(terms.objective, model.elbo(x, objective.beta.value.item()))
    torch.testing.assert_close(terms.elbo, model.elbo(x))
    torch.testing.assert_close(terms.reconstruction, model.elbo(x, 0.0))
    found = torch.autograd.grad(terms.objective.sum(), [*model.parameters()])
    wanted = model.elbo(x, objective.beta.value.item()).sum()
    for one, other in zip(found, torch.autograd.grad(wanted, [*model.parameters()]), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("objective", [ELBO(), MonteCarloELBO(0.7)], ids=lambda o: type(o).__name__)
def test_a_sampled_elbo_of_two_levels_is_unbiased(objective):
    model, x = TwoLevels(), torch.rand(3, 4, dtype=torch.float64).round()
    estimator, many = ScoreFunction(2).double(), x.repeat(4000, 1)
    values = objective(model, estimator, many).elbo.detach().unflatten(0, (4000, -1))
    assert z_scores(values, model.elbo(x)).abs().max() < LIMIT
    exact = model.elbo(x, objective.beta.value.item()).mean()
    exact = vector(torch.autograd.grad(exact, [*model.parameters()]))
    draws = []
    for _ in range(40):
        value = objective(model, estimator, x.repeat(200, 1)).objective.mean()
        draws.append(vector(torch.autograd.grad(value, [*model.parameters()])))
    assert z_scores(torch.stack(draws), exact).abs().max() < LIMIT


def vector(gradients):
    return torch.cat([g.flatten() for g in gradients])


def test_a_bound_of_many_samples_refuses_two_levels():
    with pytest.raises(ValueError, match="IWAE takes all levels of z as one joint distribution"):
        IWAE()(TwoLevels(), Exact(), torch.zeros(1, 4, dtype=torch.float64))
