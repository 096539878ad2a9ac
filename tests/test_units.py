"""Units, learned of the data and kept in the release, of columns and of pictures."""

import math

import pytest
import torch
from tables import KINDS, NUMBERS, drawn, everything, of_kind, with_holes

from vae_lab import VAE
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Columns, Laplace
from vae_lab.likelihoods import Gaussian as GaussianValues
from vae_lab.networks import MLP


@pytest.fixture(autouse=True)
def _float64(float64):
    """Exact to many digits."""


UNITS = [
    (lambda: of_kind("gaussian", 4), 4, 0),
    (lambda: of_kind("student_t", 4), 4, 0),
    (lambda: GaussianValues(standardize=True, learned=True), 4, 0),
    (lambda: Laplace(standardize=True, learned=True), 4, 0),
    (lambda: of_kind("lognormal", 4), 4, 1),
]


@pytest.mark.parametrize("make, width, log", UNITS)
def test_units_change_log_px_by_the_jacobian_and_nothing_else(make, width, log):
    x = drawn("lognormal" if log else "gaussian", 64, width)
    other = 1000 * x if log else 1000 * x + 5
    found = []
    for data in (x, other):
        torch.manual_seed(1)
        vae = VAE((width,), MLP((8,)), Gaussian(2), make())
        vae.initialize(data)
        optimizer = torch.optim.Adam(vae.parameters(), 0.01)
        for _ in range(20):
            optimizer.zero_grad()
            (-vae(data).elbo.mean()).backward()
            optimizer.step()
        found.append((vae, vae.log_likelihood(data, 20)))
    (one, log_px), (two, log_px_other) = found
    torch.testing.assert_close(log_px - width * math.log(1000), log_px_other, rtol=1e-7, atol=1e-7)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert abs(two.reconstruct(other).mean() / other.mean() - 1) < 0.5


def test_a_release_keeps_columns_units_and_what_was_learned(tmp_path):
    columns, x = everything()
    vae = VAE((len(columns),), MLP((8,)), Gaussian(2), Columns(columns, True, True))
    vae.initialize(x)
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path / "a"))
    x = with_holes(x[:9]).float()
    for found in (
        lambda vae: vae.log_likelihood(x, 5),
        lambda vae: vae.impute(x, 5),
        lambda vae: vae.sample(4),
    ):
        results = []
        for model in (vae.float(), loaded):
            torch.manual_seed(0)
            results.append(found(model.float()))
        assert torch.equal(*results)
    assert (
        loaded.likelihood.columns == columns
        and '"format": 2' in (tmp_path / "a/config.json").read_text()
    )
    assert repr(loaded.likelihood) == repr(vae.likelihood)


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_constant_column_is_named_and_so_is_one_without_values(kind):
    likelihood, x = of_kind(kind, 3, missing=True), drawn(kind, count=3)
    x[:, 1] = 0.1
    x[3, 1] = torch.nan
    line = r"column 'x1' has the same value in all rows: leave it out by columns={'x1': None}, by "
    with pytest.raises(ValueError, match=line + r"command data.columns={x1: null}"):
        likelihood.start(x)
    x[:, 1] = torch.nan
    with pytest.raises(ValueError, match="column 'x1' has no values: leave it out"):
        likelihood.start(x)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NUMBERS])
def test_other_columns_may_be_constant(kind):
    likelihood = of_kind(kind, 2)
    params = likelihood.start(torch.zeros(20, 2))
    assert likelihood.log_prob(params, torch.zeros(20, 2)).isfinite().all()
    assert likelihood.log_prob(params, torch.ones(1, 2)).isfinite().all()
    assert likelihood.inputs(torch.zeros(20, 2)).isfinite().all()


PICTURES = [GaussianValues, Laplace]


@pytest.mark.parametrize("cls", PICTURES)
def test_pictures_in_any_unit_have_a_scale_for_each_channel(cls):
    x = torch.randn(200, 3, 4, 4) * torch.tensor([1.0, 50, 0.1])[:, None, None] + 7
    likelihood = cls(0.5, standardize=True, missing=True)
    vae = VAE((3, 4, 4), MLP((8,)), Gaussian(2), likelihood)
    holes = with_holes(x)
    vae.initialize(holes)
    scale = torch.tensor([1.0, 50, 0.1])
    torch.testing.assert_close(likelihood.data_scale[:, 0, 0], scale, rtol=0.05, atol=0)
    assert likelihood.inputs(holes).shape == (200, 6, 4, 4)
    torch.testing.assert_close(likelihood.inputs(holes)[:, 3:], (~holes.isnan()).double())
    params = torch.randn(200, 3, 4, 4)
    units = likelihood.data_loc, likelihood.data_scale
    normal = torch.distributions.Normal if cls is GaussianValues else torch.distributions.Laplace
    expected = normal(units[0] + units[1] * params, 0.5 * units[1]).log_prob(x)
    expected = torch.where(holes.isnan(), 0, expected).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(params, holes), expected)
    draws = likelihood.sample(params.expand(50, *params.shape)) - likelihood.mean(params)
    width = 0.5 * scale * (1 if cls is GaussianValues else math.sqrt(2))
    torch.testing.assert_close(draws.std((0, 1, 3, 4)), width, rtol=0.05, atol=0)
    (-vae(holes).elbo.mean()).backward()
    assert vae.output_bias.grad.isfinite().all()
    filled = vae.impute(holes, 10)
    assert filled.isfinite().all() and torch.equal(filled[~holes.isnan()], x[~holes.isnan()])
    likelihood.check(holes)
    with pytest.raises(
        ValueError,
        match="needs finite numbers, the batch has nan at .* type likelihood.missing=true",
    ):
        cls(standardize=True).check(holes)
    with pytest.raises(
        ValueError, match=r"needs values in \[0, 1\], the batch has -?[0-9.]+: shift"
    ):
        cls(missing=True).check(holes)
    holes[:, 1] = 3
    with pytest.raises(ValueError, match="channel 1 has the same value everywhere"):
        vae.initialize(holes)


@pytest.mark.parametrize("cls", PICTURES)
@pytest.mark.parametrize("standardize, missing", [(True, False), (True, True), (False, True)])
def test_a_release_of_pictures_in_any_unit(cls, standardize, missing, tmp_path):
    x = torch.rand(30, 2, 4, 4)
    vae = VAE((2, 4, 4), MLP((8,)), Gaussian(2), cls(1.0, True, standardize, missing)).float()
    vae.initialize(x.float())
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path)).float()
    x = torch.where(torch.rand_like(x) < 0.2, torch.nan, x).float() if missing else x.float()
    found = [m.likelihood.log_prob(m.decode(torch.zeros(30, 2)), x) for m in (vae, loaded)]
    assert torch.equal(*found)
    assert '"format": 2' in (tmp_path / "config.json").read_text()


def test_a_release_without_them_is_one_that_version_0_1_reads(tmp_path):
    vae = VAE((1, 4, 4), MLP((8,)), Gaussian(2), GaussianValues(0.5))
    text = (vae.save_pretrained(tmp_path) / "config.json").read_text()
    assert '"format": 1' in text and "standardize" not in text and "missing" not in text
    assert not VAE.from_pretrained(tmp_path).likelihood.missing


def test_a_dry_run_of_zeros_is_no_data():
    """A log-normal has none, and what is built is tried on them."""
    vae = VAE((2,), MLP((8,)), Gaussian(2), of_kind("lognormal", 2))
    assert vae(torch.zeros(3, 2)).elbo.isfinite().all()
    with pytest.raises(ValueError, match="needs numbers above 0, row 0 has 0"):
        vae(torch.tensor([[0.0, 1.0]]))
