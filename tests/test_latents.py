"""Families of q: their densities at extreme logits, their KL, their priors, their paths."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import randomize
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import kl_divergence

from vae_lab.distributions import OneHotCategorical, detach, logsumexp, one_hot, support
from vae_lab.latents import (
    FSQ,
    LFQ,
    Bernoulli,
    Categorical,
    Codebook,
    Finite,
    Gaussian,
    Poisson,
    discrete_latent,
)

FAMILIES = [
    (Categorical, (3, 4)),
    (Codebook, (3, 4, 2, 4.0)),
    (FSQ, ((2, 2), 3, 1.0)),
    (Bernoulli, (5,)),
    (LFQ, (5, False, 1.0)),
    (Gaussian, (3,)),
    (Poisson, (3,)),
]
ON_GRIDS = [
    (Categorical, (1, 3)),
    (Codebook, (1, 3, 2)),
    (FSQ, ((3,), 1, 1.0)),
    (Bernoulli, (2,)),
    (LFQ, (2, True, 1.0)),
    (Gaussian, (2,)),
    (Poisson, (2,)),
]


def on_grid(latent, *grid):
    latent.bind(grid)
    return latent


MAKE = [
    pytest.param(
        lambda c=cls, a=a, learn=learn: c(*a, learn_prior=learn), id=f"{cls.__name__}-{learn}"
    )
    for cls, a in FAMILIES
    for learn in (False, True)
]
MAKE += [
    pytest.param(
        lambda c=cls, a=a, learn=learn: on_grid(c(*a, learn_prior=learn), 2, 3),
        id=f"{cls.__name__}-grid-{learn}",
    )
    for cls, a in ON_GRIDS
    for learn in (False, True)
]
DISCRETE = [p for p in MAKE if isinstance(p.values[0](), Finite)]


def posterior(latent, batch=4, scale=1.0):
    return latent.distribution(scale * torch.randn(batch, *latent.grid, latent.parameter_size))


@pytest.fixture
def large():
    """Logits of +-100 and what lies near them, [B, K], in float32."""
    return torch.tensor([[100.0, 0, -100], [100, 99.5, 99], [-100, -100, -99.5], [0, 0, 100]])


def test_categorical_log_prob_at_logits_of_100(large):
    logits = large.repeat(1, 2)
    q = Categorical(2, 3).distribution(logits)
    z = support(q)
    exact = (z.double() * logits.double().unflatten(-1, (2, 3)).log_softmax(-1)).sum((-2, -1))
    torch.testing.assert_close(q.log_prob(z).double(), exact, rtol=1e-6, atol=1e-5)
    through_probabilities = q.base_dist.probs.log()
    assert through_probabilities.isinf().any(), "the easy way must fail, or this tests nothing"


def test_bernoulli_log_prob_at_logits_of_100():
    logits = torch.tensor([[100.0, -100, 30], [-100, 0.1, 100]])
    q = Bernoulli(3).distribution(logits)
    z = support(q)
    sign = 2 * z.double() - 1
    exact = F.logsigmoid(sign * logits.double()).sum(-1)
    torch.testing.assert_close(q.log_prob(z).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prior", [0.0, 100.0, -100.0, 0.3])
def test_bernoulli_kl_at_logits_of_100(prior):
    latent = Bernoulli(5, learn_prior=True)
    latent.prior_parameters.data.fill_(prior)
    logits = torch.tensor([100.0, -100, 0, 30, -99.5])
    p, m = logits.double(), torch.tensor(prior).double()
    exact = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(m))
    exact = exact + (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-m))
    kl = latent.kl(latent.distribution(logits)).double()
    torch.testing.assert_close(kl, exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("prior", [[0.0, 0, 0], [100, -100, 0], [0, 50, -100]])
def test_categorical_kl_at_logits_of_100(large, prior):
    latent = Categorical(1, 3, learn_prior=True)
    latent.prior_parameters.data.copy_(torch.tensor(prior))
    log_pi = large.double().log_softmax(-1)
    log_p = torch.tensor(prior).double().log_softmax(-1)
    exact = (log_pi.exp() * (log_pi - log_p)).sum(-1, keepdim=True)
    kl = latent.kl(latent.distribution(large)).double()
    torch.testing.assert_close(kl, exact, rtol=1e-6, atol=1e-5)


EXTREME = [
    (Categorical(1, 2), [100.0, -100], math.log(2)),
    (Bernoulli(1), [100.0], math.log(2)),
    (Bernoulli(1), [-100.0], math.log(2)),
    (Gaussian(1), [100.0, 0], 5000.0),
    (Gaussian(1), [0.0, -14], 13.5),
    (Gaussian(1), [0.0, -60], 39.5),  # sigma has bounds
    (Gaussian(1), [0.0, 60], math.exp(20) / 2 - 10.5),
    (Poisson(1), [-104.0], 1.0),
    (Poisson(1), [-100.0], 1.0),
]


@pytest.mark.parametrize("latent, parameters, exact", EXTREME)
def test_extreme_kl_is_right_and_has_a_finite_gradient(latent, parameters, exact):
    parameters = torch.tensor(parameters, requires_grad=True)
    kl = latent.kl(latent.distribution(parameters)).sum()
    assert kl.item() == pytest.approx(exact, rel=1e-6)
    assert torch.autograd.grad(kl, parameters)[0].isfinite().all()


@pytest.mark.parametrize("make", MAKE)
def test_kl_agrees_with_torch(make):
    latent = randomize(make())
    q = posterior(latent)
    prior = latent.prior().expand(q.batch_shape)  # torch's KL of bits does not broadcast
    expected = kl_divergence(q.base_dist, prior.base_dist)  # [4, *grid, L]
    torch.testing.assert_close(latent.kl(q), expected.flatten(1))
    assert latent.kl(q).shape == (4, latent.num_variables)


@pytest.mark.parametrize("make", DISCRETE)
def test_kl_agrees_with_enumeration(make, float64):
    latent = randomize(make())
    q = posterior(latent, scale=2.0)
    z = support(q)
    log_ratio = q.log_prob(z) - latent.prior().log_prob(z)
    expected = (q.log_prob(z).exp() * log_ratio).sum(0)
    torch.testing.assert_close(latent.kl(q).sum(-1), expected)


@pytest.mark.parametrize("make", MAKE)
def test_kl_agrees_with_samples(make, float64):
    latent = randomize(make())
    q = posterior(latent)
    z = q.sample((20_000,))
    log_ratio = q.log_prob(z) - latent.prior().log_prob(z)
    error = log_ratio.std(0) / math.sqrt(len(z))
    assert ((log_ratio.mean(0) - latent.kl(q).sum(-1)).abs() < 4 * error).all()
    assert (latent.kl(q).sum(-1) > 10 * error).all(), "the samples must be able to tell"


@pytest.mark.parametrize("make", MAKE)
def test_kl_to_itself_is_zero_and_else_positive(make):
    latent = randomize(make())
    itself = latent.prior_distribution(latent.prior_parameters.expand(*latent.grid, -1))
    torch.testing.assert_close(latent.kl(itself), torch.zeros(latent.num_variables))
    assert (latent.kl(posterior(latent)) > 0).all()


STANDARD = [
    (Categorical(3, 4), lambda z: -3 * math.log(4) + 0 * z.sum((-2, -1))),
    (Bernoulli(5), lambda z: -5 * math.log(2) + 0 * z.sum(-1)),
    (Gaussian(3), lambda z: -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)),
    (Poisson(3), lambda z: (-1 - (z + 1).lgamma()).sum(-1)),
]


@pytest.mark.parametrize("latent, log_prob", STANDARD)
def test_a_fixed_prior_is_the_standard_one_and_stays(latent, log_prob):
    z = latent.prior().sample((7,))
    torch.testing.assert_close(latent.prior().log_prob(z), log_prob(z))
    assert not any(p.requires_grad for p in latent.parameters())


@pytest.mark.parametrize("make", [p for p in MAKE if p.id.endswith("True")])
def test_a_learned_prior_starts_standard_and_learns_the_aggregate(make):
    """The prior that minimises KL(q || p) for one q is q itself."""
    latent = make()
    assert not latent.prior_parameters.any()
    one = 0.5 * torch.randn(latent.parameter_size)
    q = detach(latent.distribution(one.expand(*latent.grid, -1)))
    optimizer = torch.optim.Adam(latent.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        latent.kl(q).sum().backward()
        optimizer.step()
    assert latent.kl(q).sum() < 1e-3


@pytest.mark.parametrize("make", MAKE)
def test_shapes(make):
    latent = make()
    q = posterior(latent)
    z = q.sample((2,))
    assert q.batch_shape == (4,) and latent.prior().batch_shape == ()
    assert z.shape == (2, 4, *latent.event_shape) == (2, *latent.mode(q).shape)
    assert latent.size == z[0, 0].numel()


@pytest.mark.parametrize("make", MAKE)
def test_the_mode_is_the_most_probable(make):
    latent = make()
    q = posterior(latent)
    z = support(q) if isinstance(latent, Finite) else q.sample((200,))
    assert (q.log_prob(latent.mode(q)) >= q.log_prob(z) - 1e-5).all()


@pytest.mark.parametrize("make", DISCRETE)
def test_codes_are_the_marginal_probabilities(make, float64):
    latent = make()
    q = posterior(latent)
    codes = latent.codes(q)  # [B, L, K]
    z = support(q)
    z = torch.stack([1 - z, z], -1) if isinstance(latent, Bernoulli) else z
    weights = q.log_prob(support(q)).exp()[..., None, None]
    torch.testing.assert_close(codes, (weights * z.flatten(2, -2)).sum(0))


@pytest.mark.parametrize("make", MAKE)
def test_prints_as_the_call_that_makes_it(make):
    latent = make()
    again = eval(repr(latent), {cls.__name__: cls for cls, _ in FAMILIES})
    assert repr(again) == repr(latent)
    assert (again.variables, again.learn_prior) == (latent.variables, latent.learn_prior)


def test_only_discrete_latents_have_codes():
    for latent in (Gaussian(3), Poisson(3)):
        assert latent.codes(posterior(latent)) is None


def test_the_one_hot_categorical_validates_only_where_asked():
    nothing = torch.full((2, 3), math.nan)
    q = OneHotCategorical(logits=nothing, validate_args=False)
    assert q.expand((4, 2)).batch_shape == (4, 2) and q.event_shape == (3,)
    with pytest.raises(ValueError, match="logits"):
        OneHotCategorical(logits=nothing, validate_args=True)


@pytest.mark.parametrize("terms", [1, 2, 17, 500])
@pytest.mark.parametrize("apart", [1.0, 100.0, 1e4])
def test_the_logarithm_of_a_sum_is_torchs(terms, apart):
    x = (apart * torch.randn(6, terms, dtype=torch.float64)).requires_grad_()
    for dtype in (torch.float64, torch.float32):
        found, expected = logsumexp(x.to(dtype)), x.logsumexp(-1)
        torch.testing.assert_close(found, expected, check_dtype=False, rtol=1e-6, atol=1e-6)
        of = [
            torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in (found, expected)
        ]
        torch.testing.assert_close(*of, rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(logsumexp, x)
    nothing = torch.full((2, terms), -math.inf)
    for ends in (nothing, -nothing):
        assert torch.equal(logsumexp(ends), ends[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize("categories", [2, 5])
def test_a_name_of_no_category_is_a_row_of_zeros(dtype, categories):
    names = [
        0,
        1,
        categories - 1,
        categories,
        -1,
        99,
        *[0.5, math.nan, math.inf] * dtype.is_floating_point,
    ]
    index = torch.tensor(names, dtype=dtype)
    expected = torch.stack([index == k for k in range(categories)], -1).float()
    like = torch.zeros(categories)
    assert torch.equal(one_hot(index, like), expected)
    assert torch.equal(torch.vmap(one_hot, (0, None))(index, like), expected)


def test_one_hot_log_prob_is_torchs_and_linear_in_between():
    logits = torch.randn(5, 3)
    ours, torchs = OneHotCategorical(logits=logits), TorchOneHotCategorical(logits=logits)
    z = torchs.sample()
    torch.testing.assert_close(ours.log_prob(z), torchs.log_prob(z))
    between = (0.3 * z + 0.7 * z.roll(1, -1)).requires_grad_()
    loose = OneHotCategorical(logits=logits, validate_args=False)
    expected = 0.3 * torchs.log_prob(z) + 0.7 * torchs.log_prob(z.roll(1, -1))
    torch.testing.assert_close(loose.log_prob(between), expected)
    (slope,) = torch.autograd.grad(loose.log_prob(between).sum(), between)
    torch.testing.assert_close(slope, torchs.logits)


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("make", MAKE)
def test_interpolation_ends_where_it_should(make, steps):
    latent = make()
    z0, z1 = latent.mode(posterior(latent)), latent.mode(posterior(latent))
    path = latent.interpolate(z0, z1, steps)
    assert path.shape == (steps, *z0.shape)
    assert torch.equal(path[0], z0) and torch.equal(path[-1], z1)
    torch.testing.assert_close(latent.interpolate(z0, z0, steps), z0.expand_as(path))


@pytest.mark.parametrize("make", DISCRETE)
def test_discrete_paths_stay_on_codes_and_never_turn_back(make):
    latent = make()
    z0, z1 = (latent.prior().sample((4,)) for _ in range(2))
    path = latent.interpolate(z0, z1, 6)
    assert ((path == 0) | (path == 1)).all()
    done = (path == z1).flatten(2).sum(-1)
    assert (done.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("sides", [(8, 12), (13, 13), (1, 40)])
def test_on_a_grid_whole_places_change_and_everywhere(sides):
    latent = Categorical(2, 3)
    latent.bind(sides)
    z0, z1 = (latent.from_numbers(torch.full((latent.num_variables,), n)) for n in (0, 1))
    path = latent.interpolate(z0, z1, 5)
    assert torch.equal(path[0], z0) and torch.equal(path[-1], z1)
    changed = path[..., 1]  # [5, h, w, 2]
    assert (changed[1:, ..., 0] == changed[1:, ..., 1]).float().mean() > 0.99
    for half in changed[..., 0].tensor_split(2, 1) + changed[..., 0].tensor_split(2, 2):
        if half.numel():
            share = half.float().mean((1, 2))
            torch.testing.assert_close(share, torch.linspace(0, 1, 5), atol=0.08, rtol=0)


def test_without_a_grid_variables_change_by_their_number():
    latent = Bernoulli(5)
    path = latent.interpolate(torch.zeros(5), torch.ones(5), 6)
    assert torch.equal(path, torch.ones(6, 5).tril(-1))


def test_gaussian_paths_keep_their_length():
    z = F.normalize(torch.randn(2, 5, 8), dim=-1)
    path = Gaussian(8).interpolate(z[0], z[1], 7)
    torch.testing.assert_close(path.norm(dim=-1), torch.ones(7, 5))
    straight = torch.lerp(z[0], z[1], 0.5).norm(dim=-1)
    assert (straight < 0.95).any(), "the straight line must fail, or this tests nothing"


@pytest.mark.parametrize("end", [-1.5, 2.0, 1.0, 0.0])
def test_gaussian_paths_of_one_dimension_stay_between_their_ends(end):
    path = Gaussian(1).interpolate(torch.tensor([[1.0]]), torch.tensor([[end]]), 9)
    assert path.min() >= min(1.0, end) - 1e-6 and path.max() <= max(1.0, end) + 1e-6


def test_refusals():
    with pytest.raises(ValueError, match="latents must be at least 1, got 0"):
        Gaussian(0)
    with pytest.raises(ValueError, match="categories must be at least 2, got 1"):
        Categorical(3, 1)


def test_bits_are_what_is_left_without_categories():
    assert isinstance(discrete_latent(3, None), Bernoulli)
    latent = discrete_latent(3, 4, learn_prior=True)
    assert isinstance(latent, Categorical) and latent.learn_prior


@pytest.mark.parametrize("make", MAKE)
def test_a_z_is_written_as_numbers_and_read(make):
    latent = randomize(make())
    z = latent.prior().sample((5, 2))
    numbers = latent.numbers(z)
    assert numbers.shape == (5, 2, latent.num_variables)
    assert torch.equal(latent.from_numbers(numbers), z)
    low, high = latent.range(numbers.flatten(0, 1).to(z))
    assert (low <= numbers).all() and (numbers <= high).all()
    names, _ = latent.value_names(len(latent.values(6)))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("make", [p for p in MAKE if "Gaussian" not in p.id])
def test_the_usage_is_the_probability_of_each_value(make):
    latent = randomize(make())
    q = posterior(latent)
    usage = latent.usage(q, 4)  # [B, L, V]
    for k, numbers in enumerate(latent.values(4)):
        expected = q.base_dist.log_prob(latent.from_numbers(numbers)).exp()
        torch.testing.assert_close(usage[..., k], expected.flatten(1))


def test_the_variables_of_a_gaussian_have_no_probabilities():
    assert Gaussian(3).usage(Gaussian(3).prior()) is None


@pytest.mark.parametrize("make", MAKE)
def test_drawing_from_the_prior_leaves_the_generators_alone(make):
    latent = make()
    before = torch.get_rng_state()
    latent.sample(3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("grid", [(), (2, 2)], ids=["flat", "grid"])
@pytest.mark.parametrize(
    ("latent", "parameters", "likeliest"),
    [
        (lambda: Categorical(2, 3, learn_prior=True), [0.0, 0, 5, 0, 5, 0], [2.0, 1]),
        (lambda: Bernoulli(2, learn_prior=True), [3.0, -3], [1.0, 0]),
        (lambda: Poisson(2, learn_prior=True), [math.log(5.3), math.log(0.4)], [5.0, 0]),
    ],
    ids=["codes", "bits", "counts"],
)
def test_at_a_temperature_of_0_the_likeliest_value_is_drawn(latent, parameters, likeliest, grid):
    latent = latent()
    latent.bind(grid)
    latent.prior_parameters.data = torch.tensor(parameters)
    numbers = latent.numbers(latent.sample(3, temperature=0.0)).float()
    assert all(place.tolist() == likeliest for place in numbers.reshape(-1, 2))
