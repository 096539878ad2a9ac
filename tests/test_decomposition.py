"""What the KL is made of, where all of it is known."""

import math

import pytest
import torch
from tiny import randomize
from torch.distributions import Normal

from vae_lab.distributions import support
from vae_lab.evaluation.decomposition import activity, code_use, decompose, prior_gap
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson

FAMILIES = [
    pytest.param(lambda: Bernoulli(3, learn_prior=True), id="bits"),
    pytest.param(lambda: Categorical(2, 3, learn_prior=True), id="codes"),
    pytest.param(lambda: Gaussian(2, learn_prior=True), id="gaussian"),
    pytest.param(lambda: Poisson(2, learn_prior=True), id="counts"),
]


def posteriors(make, images=7, scale=1.0):
    """A latent with a prior of its own, and random q(z|x_n)."""
    latent = randomize(make().double(), 0.5)
    parameters = scale * torch.randn(images, latent.parameter_size, dtype=torch.float64)
    return latent, latent.distribution(parameters)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_parts_add_up_and_each_is_the_mean_that_it_claims(make):
    """Measured once more, term by term, with torch's own densities."""
    latent, q = posteriors(make)
    found = decompose(latent, q, points=4000)
    parts = found.mutual_information + found.total_correlation + found.marginal_kl.sum().item()
    assert parts == pytest.approx(found.kl) == pytest.approx(latent.kl(q).sum(-1).mean().item())
    z = q.sample((3000,))  # [S, N, *E]
    inner, prior = q.base_dist, latent.prior()
    log_each = inner.log_prob(z.unsqueeze(2))  # [S, N, N, L]
    log_qz = log_each.sum(-1).logsumexp(2) - math.log(7)
    log_marginals = log_each.logsumexp(2) - math.log(7)  # [S, N, L]
    information = q.log_prob(z) - log_qz
    correlation = log_qz - log_marginals.sum(-1)
    marginal = log_marginals - prior.base_dist.log_prob(z)
    for name, theirs in [
        ("mutual_information", information),
        ("total_correlation", correlation),
        ("marginal_kl", marginal.sum(-1)),
    ]:
        mine = torch.as_tensor(getattr(found, name)).sum().item()
        error = math.hypot(getattr(found, f"{name}_error"), theirs.std().item() / math.sqrt(21_000))
        assert mine == pytest.approx(theirs.mean().item(), abs=3 * error)
    assert found.points >= 4000 and found.images == 7


@pytest.mark.parametrize("make", FAMILIES[:2])
def test_discrete_parts_by_enumeration(make):
    latent, q = posteriors(make, scale=2.0)
    z = support(q)  # [states, N, *E]
    p = q.log_prob(z).exp().mean(1)  # of the aggregate posterior
    entropy = torch.special.entr(q.log_prob(z).exp()).sum(0).mean()
    usage = latent.codes(q).mean(0)
    entropies = torch.special.entr(usage).sum(-1)
    information = torch.special.entr(p).sum() - entropy
    correlation = entropies.sum() - torch.special.entr(p).sum()
    marginal = -entropies - usage.xlogy(latent.codes(latent.prior())).sum(-1)
    found = decompose(latent, q, points=20_000)
    error = found.mutual_information_error
    assert found.mutual_information == pytest.approx(information.item(), abs=3 * error)
    assert found.total_correlation == pytest.approx(correlation.item(), abs=3 * error)
    torch.testing.assert_close(found.marginal_kl, marginal)
    assert found.marginal_kl_error == 0 < error < 0.02


@pytest.mark.parametrize(("images", "points"), [(100, 300), (600, 300)], ids=["all", "some"])
@pytest.mark.parametrize("make", FAMILIES)
def test_the_errors_are_those_of_repeats(make, images, points):
    """Where all images draw and where some do, of which the others then have a share."""
    latent = randomize(make().double(), 0.5)
    parameters = 0.5 * torch.randn(images, latent.parameter_size, dtype=torch.float64)
    names = ("mutual_information", "total_correlation", "marginal_kl")
    values, claims = [], []
    for _ in range(80):
        q = latent.distribution(parameters[torch.randperm(images)])
        found = decompose(latent, q, points)
        values.append([torch.as_tensor(getattr(found, name)).sum().item() for name in names])
        claims.append([getattr(found, f"{name}_error") for name in names])
    real, claimed = torch.tensor(values).std(0), torch.tensor(claims).square().mean(0).sqrt()
    known = 2 if latent.codes(latent.prior()) is not None else 3  # sums need no points
    ratio = (claimed / real)[:known]
    assert ratio.min() > 0.7 and ratio.max() < 1.4


@pytest.mark.parametrize("latents", [120, 200])
def test_the_errors_of_many_latents(latents):
    """240 controls leave less of 600 points than there is; 400 would leave hardly anything."""
    latent = Bernoulli(latents)
    parameters = 0.5 * torch.randn(600, latents)
    values, claims = [], []
    for _ in range(40):
        found = decompose(latent, latent.distribution(parameters[torch.randperm(600)]), 300)
        values.append(found.mutual_information)
        claims.append(found.mutual_information_error)
    real, claimed = torch.tensor(values).std(), torch.tensor(claims).square().mean().sqrt()
    assert 0.7 < claimed / real < 1.4


def test_images_that_share_a_posterior_tell_nothing():
    latent = Gaussian(3)
    q = latent.distribution(torch.tensor([1.0, 0, 2, 0, -1, 0]).expand(50, -1))
    found = decompose(latent, q)
    assert found.mutual_information == pytest.approx(0, abs=1e-9)
    assert found.total_correlation == pytest.approx(0, abs=4 * found.marginal_kl_error)
    torch.testing.assert_close(
        found.marginal_kl, latent.kl(q)[0].double(), atol=4 * found.marginal_kl_error, rtol=0
    )


def test_images_far_from_each_other_tell_who_they_are():
    """As much as there is to tell of N: log N; and all of it twice, in both variables."""
    latent = Gaussian(2)
    places = 100.0 * torch.arange(16).unsqueeze(1).expand(-1, 2)
    q = latent.distribution(torch.cat([places, torch.zeros(16, 2)], 1))
    found = decompose(latent, q)
    assert found.mutual_information == pytest.approx(math.log(16))
    assert found.total_correlation == pytest.approx(
        math.log(16), abs=1e-3 + 4 * found.marginal_kl_error
    )


def test_correlated_gaussians():
    """q(z) is nearly normal with correlation rho: TC = -log(1 - rho^2) / 2."""
    means = torch.randn(3000, 1, dtype=torch.float64)
    spread = 0.6 * torch.randn(3000, 2, dtype=torch.float64)
    latent = Gaussian(2).double()
    log_scale = torch.full((3000, 2), math.log(0.3), dtype=torch.float64)
    q = latent.distribution(torch.cat([0.8 * means + spread, log_scale], 1))
    found = decompose(latent, q)
    variance = 0.8**2 + 0.6**2 + 0.3**2
    correlation = -0.5 * math.log(1 - (0.8**2 / variance) ** 2)
    assert found.total_correlation == pytest.approx(correlation, abs=0.03)
    information = 0.5 * math.log((variance**2 - 0.8**4) / 0.3**4)
    assert found.mutual_information == pytest.approx(information, abs=0.05)
    assert found.marginal_kl.tolist() == pytest.approx(
        [0.5 * (variance - 1 - math.log(variance))] * 2, abs=0.02
    )


@pytest.mark.parametrize("latents", [1, 3])
@pytest.mark.parametrize("log_scale", [-9.0, -20.0, -60.0, -100.0])
def test_narrow_posteriors_lose_no_precision(latents, log_scale):
    """Also where they are narrower than the last digit of their means, and than z itself: each
    image is told by every variable, so q(z_l) is as far from its prior as that allows."""
    latent = Gaussian(latents)
    means = 3 + torch.rand(8, latents)
    q = latent.distribution(torch.cat([means, torch.full((8, latents), log_scale)], 1))
    found = decompose(latent, q)
    told = math.log(8)
    assert found.mutual_information == pytest.approx(told, abs=1e-4)
    assert found.total_correlation == pytest.approx((latents - 1) * told, abs=0.01)
    assert found.marginal_kl.sum().item() == pytest.approx(found.kl - latents * told, abs=0.01)


def test_a_narrow_prior_loses_no_precision():
    latent = Gaussian(1, learn_prior=True)
    with torch.no_grad():
        latent.prior_parameters.copy_(torch.tensor([1.0, -38.0]))
    q = latent.distribution(torch.tensor([[1.0, -38.0], [1.0, -39.0]]))
    found = decompose(latent, q)
    assert 0 < found.mutual_information < found.kl < 1
    assert found.marginal_kl.item() == pytest.approx(found.kl - found.mutual_information, abs=0.01)


def test_of_posteriors_without_width_nothing_is_known():
    latent = Gaussian(2)
    q = latent.independent(Normal(torch.randn(8, 2), torch.zeros(8, 2), validate_args=False))
    found = decompose(latent, q)
    assert math.isinf(found.kl) and math.isnan(found.mutual_information)


def test_of_many_images_some_are_taken():
    latent, q = posteriors(lambda: Gaussian(2), images=40)
    found = decompose(latent, q, points=5, mixture=10)
    assert (found.images, found.points) == (10, 10)
    assert found.kl == pytest.approx(latent.kl(q)[::4].sum(-1).mean().item())


def test_the_prior_gap_is_a_bound_that_normals_and_independent_codes_reach():
    """Of as many posteriors at draws of a normal it is that normal's KL, correlations included."""
    covariance = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.tensor([1.0, 0.0]).double(), covariance)
    means = normal.sample((20_000,))
    latent = Gaussian(2).double()
    q = latent.distribution(torch.cat([means, torch.full_like(means, -9.0)], 1))
    expected = 0.5 * (covariance.trace() + 1 - 2 - covariance.logdet()).item()
    assert prior_gap(latent, q) == pytest.approx(expected, abs=0.03)
    codes = Categorical(2, 3)
    pi = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    q = codes.distribution(pi.log().flatten().expand(5000, -1))
    expected = math.log(3) + (pi[0] * pi[0].log()).sum().item()
    assert prior_gap(codes, q) == pytest.approx(expected, abs=1e-3)
    counts = Poisson(1)
    rates = torch.tensor([[1.0], [5.0]]).log().repeat(1000, 1)
    q = counts.distribution(rates)  # of rate 3 on average, the prior's is 1
    assert prior_gap(counts, q) == pytest.approx(3 * math.log(3) - 2, abs=1e-3)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_prior_gap_is_no_more_than_the_divergence(make):
    latent, q = posteriors(make, images=400, scale=2.0)
    found = decompose(latent, q, points=4000)
    whole = found.kl - found.mutual_information
    assert 0 < prior_gap(latent, q) < whole + 3 * found.mutual_information_error


@pytest.mark.parametrize("latents, images", [(20, 300), (64, 1000), (64, 40)])
def test_narrow_posteriors_at_draws_of_the_prior_are_no_gap(latents, images):
    """Also few of many variables, whose covariance is not known."""
    latent = Gaussian(latents)
    means = torch.randn(images, latents)
    q = latent.distribution(torch.cat([means, torch.full_like(means, -6.0)], 1))
    assert prior_gap(latent, q) < 1.5


def test_activity_is_the_variance_of_the_mean():
    latent = Gaussian(2)
    q = latent.distribution(torch.tensor([[1.0, 5, 0, 0], [3.0, 5, 0, 0]]))
    assert activity(q).tolist() == [1.0, 0.0]
    codes = Categorical(2, 2)
    q = codes.distribution(torch.tensor([[90.0, 0, 0, 0], [0.0, 90, 0, 0]]))
    assert activity(q).tolist() == pytest.approx([0.5, 0.0])


def test_use_of_codes():
    same = [0.4, 0.3, 0.2, 0.1]
    codes = torch.tensor([[[0.7, 0.2, 0.1, 0.0], same], [[0.2, 0.7, 0.1, 0.0], same]])
    use = code_use(codes)
    assert use.used == 3 / 8
    means = ([0.45, 0.45, 0.1], same)
    entropies = [-sum(p * math.log(p) for p in mean) for mean in means]
    assert use.perplexity.tolist() == pytest.approx([math.exp(entropy) for entropy in entropies])


@pytest.mark.parametrize("make", FAMILIES)
def test_on_a_grid_the_parts_are_those_of_its_variables_in_a_row(make):
    """Of the same posteriors, without a grid."""
    grid = make().double()
    grid.bind((2, 2))
    flat = type(grid)(4 * grid.latents, *([grid.categories] if grid.kind == "codes" else []))
    size = grid.parameter_size
    parameters = torch.randn(40, 2, 2, size, dtype=torch.float64)
    in_a_row = parameters.reshape(40, 4, -1, grid.latents)  # Gaussians: all means, then all scales
    if grid.kind == "codes":
        in_a_row = parameters.reshape(40, -1)
    else:
        in_a_row = in_a_row.transpose(1, 2).reshape(40, -1)
    one = decompose(grid, grid.distribution(parameters), points=4000)
    other = decompose(flat.double(), flat.distribution(in_a_row), points=4000)
    assert one.kl == pytest.approx(other.kl)
    for name in ("mutual_information", "total_correlation"):
        error = math.hypot(*(getattr(found, f"{name}_error") for found in (one, other)))
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=4 * error)
    error = math.hypot(one.marginal_kl_error, other.marginal_kl_error)
    assert one.marginal_kl.sum().item() == pytest.approx(
        other.marginal_kl.sum().item(), abs=4 * error + 1e-9
    )


@pytest.mark.parametrize("make", FAMILIES)
def test_points_that_are_drawn_in_parts_are_as_good(make, monkeypatch):
    latent, q = posteriors(make)
    whole = decompose(latent, q, points=4000)
    monkeypatch.setattr("vae_lab.evaluation.densities.DRAWN", 7 * latent.size * 100)
    parts = decompose(latent, q, points=4000)
    assert parts.points == whole.points
    error = math.hypot(parts.mutual_information_error, whole.mutual_information_error)
    assert parts.mutual_information == pytest.approx(whole.mutual_information, abs=4 * error)


def test_the_prior_gap_of_thousands_of_variables_makes_no_matrix():
    latent = Gaussian(8)
    latent.bind((40, 40))
    q = latent.distribution(torch.zeros(3, 40, 40, 16))  # a matrix would be 1.3 GB
    assert prior_gap(latent, q) == 0


def test_codes_at_places_are_one_code():
    latent = Categorical(1, 4)
    latent.bind((1, 2))
    codes = latent.codes(latent.distribution(100 * torch.eye(4)[[0, 3]].reshape(1, 1, 2, 4)))
    use = code_use(latent.places_as_data(codes))
    assert use.used == 0.5 and use.perplexity.tolist() == pytest.approx([2.0])
    assert code_use(codes).used == 0.25  # each place by itself
