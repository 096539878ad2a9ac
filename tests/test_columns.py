"""The likelihood of columns: each kind against scipy, sums and integrals, and at extremes."""

import math

import pytest
import torch
from scipy import stats  # scikit-learn brings it
from tables import (
    COUNTS,
    KINDS,
    NUMBERS,
    N,
    column,
    drawn,
    everything,
    of_kind,
    started,
    with_holes,
)

from vae_lab import VAE
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Columns
from vae_lab.networks import Linear

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _float64(float64):
    """Exact to many digits."""


def support(kind):
    """All values of a discrete kind that have a probability worth its name, [M, 1]."""
    return torch.arange(float({"bernoulli": 2, "categorical": 4, "ordinal": 4}.get(kind, 3000)))[
        :, None
    ]


def reference(likelihood, kind, params):
    """scipy's distribution of the one column, by the formulas in textbooks."""
    own = {
        name.rpartition(".")[2]: p.detach().squeeze(0) for name, p in likelihood.named_parameters()
    }
    units = {
        name.rpartition(".")[2]: b.item()
        for name, b in likelihood.named_buffers()
        if b.numel() == 1
    }
    first, *rest = params.tolist()
    if kind in NUMBERS:
        centre = units["loc"] + units["scale"] * first
        width = units["scale"] * own["log_sigma"].exp().item()
        if kind == "gaussian":
            return stats.norm(centre, width)
        if kind == "lognormal":
            return stats.lognorm(width, scale=math.exp(centre))
        return stats.t(1 + own["log_dof"].exp().item(), centre, width)
    if kind == "bernoulli":
        return stats.bernoulli(1 / (1 + math.exp(-first)))
    if kind == "categorical":
        return stats.rv_discrete(values=(range(4), params.softmax(-1).numpy()))
    if kind == "ordinal":
        gaps = torch.cat([torch.zeros(1), own["log_gaps"].exp().cumsum(0)])
        below = (own["first_cut"] + gaps - first).sigmoid()
        masses = torch.cat([torch.zeros(1), below, torch.ones(1)]).diff()
        return stats.rv_discrete(values=(range(4), masses.numpy()))
    if "negative_binomial" in kind:
        r, mean = own["log_dispersion"].exp().item(), math.exp(first)
        count = stats.nbinom(r, r / (r + mean))
    else:
        count = stats.poisson(math.exp(first))
    return _Inflated(count, 1 / (1 + math.exp(-rest[0]))) if rest else count


class _Inflated:
    def __init__(self, count, share):
        self.count, self.share = count, share

    def pmf(self, x):
        return self.share * (x == 0) + (1 - self.share) * self.count.pmf(x)

    def mean(self):
        return (1 - self.share) * self.count.mean()


@kinds
def test_each_kind_is_scipys(kind):
    likelihood, x, params = started(kind)
    params = params + 0.3 * torch.randn_like(params)
    theirs = reference(likelihood, kind, params)
    expected = theirs.pdf(x[:, 0]) if kind in NUMBERS else theirs.pmf(x[:, 0].numpy())
    found = likelihood.log_prob(params, x).exp()
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-12)
    if kind in NUMBERS + COUNTS:
        assert likelihood.mean(params).item() == pytest.approx(theirs.mean(), rel=1e-9)


@kinds
def test_a_mass_sums_to_one_and_a_density_integrates_to_it(kind):
    likelihood, x, params = started(kind)
    assert likelihood.discrete == (kind not in NUMBERS)
    if likelihood.discrete:
        total = likelihood.log_prob(params, support(kind)).exp().sum()
    else:
        grid = (
            torch.linspace(-8, 12, 200_001)
            if kind == "lognormal"
            else torch.linspace(-1e3, 1e3, 400_001)
        )
        x = grid.exp() if kind == "lognormal" else 40 + grid
        total = torch.trapezoid(likelihood.log_prob(params, x[:, None]).exp(), x)
    assert total.item() == pytest.approx(1, abs=1e-5)


@kinds
def test_samples_are_legal_and_have_the_mean_and_the_masses(kind):
    likelihood, _, params = started(kind, count=2)
    x = likelihood.sample(params.expand(40_000, -1))
    likelihood.check(x)
    if kind in NUMBERS + COUNTS:
        error = x.std(0) / 200
        assert ((x.mean(0) - likelihood.mean(params)).abs() < 4 * error).all()
    else:
        shares = (x.unsqueeze(-1) == torch.arange(4)).double().mean(0)  # [2, 4]
        best = shares.argmax(-1)
        assert torch.equal(likelihood.mean(params), best.double())
    probability = likelihood.log_prob(params, x[:200]).exp()
    assert ((probability > 0) & ((probability <= 1) | ~torch.tensor(likelihood.discrete))).all()


# By moments or given degrees of freedom; in nats a value.
ROUGHLY = {
    "student_t": 0.03,
    "negative_binomial": 0.01,
    "zero_inflated_poisson": 0.03,
    "zero_inflated_negative_binomial": 0.03,
}


@kinds
def test_the_start_is_near_the_optimum(kind):
    """No step from there, of the parameters that are the same for all data, gains much."""
    likelihood, x = of_kind(kind), drawn(kind, 4000)
    params = likelihood.start(x).clone().requires_grad_()
    before = likelihood.log_prob(params, x).mean().item()
    own = [params, *likelihood.parameters()]
    optimizer = torch.optim.LBFGS(own, max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -likelihood.log_prob(params, x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    gain = likelihood.log_prob(params, x).mean().item() - before
    assert -1e-9 < gain < ROUGHLY.get(kind, 1e-3)


def test_a_dispersion_starts_at_that_of_the_data():
    likelihood = of_kind("negative_binomial")
    likelihood.start(
        torch.distributions.NegativeBinomial(5.0, torch.tensor(0.8)).sample((20_000, 1))
    )
    (log_r,) = likelihood.parameters()
    assert log_r.exp().item() == pytest.approx(5, rel=0.1)


@kinds
@pytest.mark.parametrize("size", [-1e4, -50, 0, 50, 1e4])
def test_gradients_are_finite_at_extremes(kind, size):
    likelihood, x, params = started(kind)
    likelihood, x = likelihood.float(), x.float()
    params = torch.full_like(params, size, dtype=torch.float32).requires_grad_()
    far = [x]
    if kind in COUNTS:
        far.append(torch.tensor([[0.0], [1e6]], dtype=torch.float32))
    if kind in NUMBERS:
        far.append(torch.tensor([[1e-6], [1e8]], dtype=torch.float32))
    for values in far:
        log_px = likelihood.log_prob(params, values)
        found = torch.autograd.grad(log_px.sum(), [params, *likelihood.parameters()])
        assert log_px.isfinite().all() and all(gradient.isfinite().all() for gradient in found)
    assert likelihood.mean(params).isnan().sum() == 0


def test_large_counts_keep_their_digits_in_float32():
    likelihood = of_kind("poisson").float()
    x = torch.tensor([[1e6]], dtype=torch.float32)
    found = likelihood.log_prob(torch.tensor([math.log(1e6)], dtype=torch.float32), x)
    assert found.item() == pytest.approx(stats.poisson(1e6).logpmf(1e6), abs=1e-3)


def test_a_negative_binomial_without_dispersion_is_a_poisson():
    for plain, wide in (
        ("poisson", "negative_binomial"),
        ("zero_inflated_poisson", "zero_inflated_negative_binomial"),
    ):
        ours, limit = of_kind(wide), of_kind(plain)
        params = torch.tensor([[1.5, -0.4][: ours.parameter_shape((1,))[0]]])
        gaps = []
        for log_r in (2.0, 6.0, 15.0):
            for own in ours.parameters():
                own.data.fill_(log_r)
            x = torch.arange(30.0)[:, None]
            gaps.append((ours.log_prob(params, x) - limit.log_prob(params, x)).abs().max())
        assert gaps[0] > 0.1 and gaps[0] > 10 * gaps[1] and gaps[2] < 1e-3


def test_all_kinds_together_are_the_sum_of_each_alone():
    columns, x = everything()
    x = with_holes(x)
    likelihood = Columns(columns, missing=True)
    params = likelihood.start(x)
    assert params.shape == likelihood.parameter_shape((len(columns),))
    total = 0
    for j, each in enumerate(columns):
        alone = Columns([each], missing=True)
        own = alone.start(x[:, j : j + 1])
        total = total + alone.log_prob(own, x[:, j : j + 1])
    torch.testing.assert_close(likelihood.log_prob(params, x), total)
    assert not likelihood.discrete
    assert likelihood.inputs(x).shape == (N, *likelihood.input_shape((len(columns),)))
    assert likelihood.inputs(x).isfinite().all()


def test_series_are_rows_of_columns_and_broadcast():
    columns, x = everything()
    rows, series = Columns(columns), Columns(columns)
    shape = series.bind((5, len(columns)))
    x = x[:40]
    params = series.start(x.reshape(8, 5, -1))
    assert params.shape == shape
    torch.testing.assert_close(params[3], rows.start(x))
    params = params + torch.randn(3, 1, *shape) / 10
    found = series.log_prob(params, x.reshape(8, 5, -1))  # [3, 8]
    expected = rows.log_prob(params.expand(3, 8, *shape).reshape(3, 40, -1), x)
    torch.testing.assert_close(found, expected.reshape(3, 8, 5).sum(-1))
    assert series.sample(params).shape == series.mean(params).shape == (3, 1, 5, len(columns))


@kinds
def test_what_the_encoder_sees_is_about_one_and_zero_where_it_is_missing(kind):
    likelihood, x, _ = started(kind, 3, missing=True)
    holes = with_holes(x)
    seen = likelihood.inputs(holes)
    assert seen.shape == (N, *likelihood.input_shape((3,)))
    assert torch.equal(seen[:, -3:], (~holes.isnan()).double())
    values, whole = (part[:, :-3].reshape(N, 3, -1) for part in (seen, likelihood.inputs(x)))
    missing = holes.isnan()
    assert (values[missing] == 0).all() and torch.equal(values[~missing], whole[~missing])
    assert 0.3 < whole.square().mean().sqrt() < 1.1


@pytest.mark.parametrize("kind", COUNTS)
def test_a_size_factor_shares_the_total_among_the_columns(kind):
    likelihood, x, params = started(kind, 3, size_factor=True, missing=True)
    torch.testing.assert_close(likelihood.mean_total, x.sum(-1).clamp(min=1).mean())
    x = with_holes(x)[:50]
    x[0] = torch.nan
    free = of_kind(kind, 3, missing=True)
    free.load_state_dict(likelihood.state_dict(), strict=False)
    width = params.numel() // 3
    rates = params.reshape(3, width)[:, 0].exp()
    seen = ~x.isnan()
    total = x.nansum(-1, keepdim=True).clamp(min=1)
    shares = rates / (rates * seen).sum(-1, keepdim=True)
    whole = ~seen.any(-1, keepdim=True)
    shares = torch.where(whole, rates / rates.sum(), shares)
    total = torch.where(whole, likelihood.mean_total, total)
    by_hand = params.reshape(3, width).expand(50, 3, width).clone()
    by_hand[..., 0] = (shares * total).log()
    by_hand = by_hand.flatten(1)
    torch.testing.assert_close(likelihood.log_prob(params, x), free.log_prob(by_hand, x))
    torch.testing.assert_close(likelihood.given(x).mean(params), free.mean(by_hand))
    away = params.reshape(3, width).clone()
    away[:, 0] += 1  # a softmax does not know
    torch.testing.assert_close(
        likelihood.log_prob(away.flatten(), x), likelihood.log_prob(params, x)
    )
    mean = likelihood.mean(params)
    if width == 1:
        torch.testing.assert_close(mean.sum(), likelihood.mean_total)
        torch.testing.assert_close(
            likelihood.given(x).mean(params).where(seen, 0).sum(-1)[~whole[:, 0]], total[~whole]
        )


REFUSED = [
    (
        "gaussian",
        math.inf,
        "gaussian column 'x1' needs finite numbers, row 3 has inf: mend the data",
    ),
    ("lognormal", 0.0, "lognormal column 'x1' needs numbers above 0, row 3 has 0: mend the data"),
    ("student_t", -math.inf, "needs finite numbers, row 3 has -inf"),
    ("bernoulli", 0.5, "bernoulli column 'x1' needs 0 and 1, row 3 has 0.5"),
    ("categorical", 4.0, "needs the numbers of its values, from 0, row 3 has 4: mend"),
    ("ordinal", -1.0, "row 3 has -1: mend the data, or give the column another kind"),
    (
        "poisson",
        1.5,
        "poisson column 'x1' needs counts, which are whole numbers from 0, row 3 has 1.5",
    ),
    ("negative_binomial", -2.0, "row 3 has -2"),
    ("zero_inflated_poisson", math.inf, "row 3 has inf"),
    ("zero_inflated_negative_binomial", 0.1, "row 3 has 0.1"),
    (
        "poisson",
        math.nan,
        r"column 'x1' is missing \(nan\) in row 3: the model was made for data that is whole",
    ),
]


@pytest.mark.parametrize(("kind", "value", "message"), REFUSED)
def test_a_value_that_a_column_cannot_have_is_named(kind, value, message):
    assert {kind for kind, *_ in REFUSED} == KINDS.keys()
    likelihood, x, _ = started(kind, 2)
    likelihood.check(x)
    likelihood.check(x[:0])
    x[3, 1] = value
    with pytest.raises(ValueError, match=message):
        likelihood.check(x)
    series = Columns(likelihood.columns)
    series.bind((2, 2))
    with pytest.raises(ValueError, match="row 1, step 1|row 1, step 1: type"):
        series.check(x.reshape(-1, 2, 2))
    if math.isnan(value):
        of_kind(kind, 2, missing=True).check(x)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, "columns must be a list of the table's columns, got None"),
        ([], r"columns must be a list of the table's columns, got \[\]"),
        (["age"], "a column must be a dict with a name, a kind and, of .* column 0 is 'age'"),
        ([{"name": "age"}], "column 0 is {'name': 'age'}"),
        (
            [{"name": "age", "kind": "gauss"}],
            "unknown kind 'gauss' of column 'age'; known: gaussian",
        ),
        ([column("poisson"), column("poisson")], "columns must differ in name, two are named 'x'"),
        ([column("poisson") | {"values": [1, 2]}], "column 'x' is poisson and has no values"),
        (
            [{"name": "x", "kind": "ordinal"}],
            "'x' is ordinal and needs a list of at least 2 different",
        ),
        ([{"name": "x", "kind": "categorical", "values": ["a", "a"]}], r"values, got \['a', 'a'\]"),
        ([column("bernoulli") | {"values": ["a"]}], "'x' is bernoulli and has 2 different values"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        Columns(columns)


def test_what_else_is_refused():
    with pytest.raises(ValueError, match="size_factor needs columns of counts, such as poisson"):
        of_kind("gaussian", size_factor=True)
    with pytest.raises(
        ValueError, match=r"with 2 columns must have a shape that ends in 2, got \[3\]"
    ):
        VAE((3,), Linear(), Gaussian(2), of_kind("gaussian", 2))
    with pytest.raises(ValueError, match=r"type vae.initialize\(x\)"):
        VAE((2,), Linear(), Gaussian(2), of_kind("gaussian", 2)).initialize_bias(torch.zeros(2))
