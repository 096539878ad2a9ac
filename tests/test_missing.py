"""Missing values: what was observed has the marginal's evidence, and the rest is filled by it."""

import numpy as np
import pytest
import torch
from tables import everything, of_kind, with_holes
from torch.distributions import MultivariateNormal

import vae_lab.imputation
from vae_lab import VAE
from vae_lab.inputs import as_data
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Columns
from vae_lab.likelihoods import Gaussian as GaussianValues
from vae_lab.networks import MLP, Linear


@pytest.fixture(autouse=True)
def _float64(float64):
    """Exact to many digits."""


class Incomplete:
    """x = W z + b + noise of each column's own sigma, with values missing: all is Gaussian."""

    def __init__(self, columns=True):
        likelihood = (
            of_kind("gaussian", 4, missing=True)
            if columns
            else GaussianValues(0.6, True, True, True)
        )
        self.vae = VAE((4,), Linear(), Gaussian(2), likelihood).double()
        data = 50 + torch.randn(200, 2) @ torch.randn(2, 4) * 5 + torch.randn(200, 4)
        self.vae.initialize(data)
        with torch.no_grad():
            for name, p in self.vae.named_parameters():
                if not name.startswith("latent"):  # the prior is the standard normal
                    p.copy_(0.5 * torch.randn_like(p))
            self.vae.head.weight *= 0.05  # q is wider than the prior, so no weight is large
            self.vae.head.bias.fill_(0.5)
        self.x = with_holes(data[:30], 0.4)
        self.x[0], self.x[1] = data[0], torch.nan

    def joint(self):
        likelihood = self.vae.likelihood
        if isinstance(likelihood, Columns):
            kind = likelihood.kinds["gaussian"]
            loc, scale, sigma = kind.loc, kind.scale, kind.log_sigma.exp()
        else:
            loc, scale, sigma = (
                likelihood.data_loc,
                likelihood.data_scale,
                likelihood.log_sigma.exp(),
            )
        offset = self.vae.decode(torch.zeros(1, 2))[0]
        weight = scale.unsqueeze(1) * (self.vae.decode(torch.eye(2)) - offset).T
        noise = ((scale * sigma) ** 2) * torch.ones(4)
        return loc + scale * offset, weight @ weight.T + noise.diag()

    def rows(self):
        """Of each row: what is missing, log p of the rest, and the mean and covariance."""
        mean, covariance = self.joint()
        for x in self.x:
            m = x.isnan()
            inner, across = covariance[~m][:, ~m], covariance[m][:, ~m]
            log_p = (
                MultivariateNormal(mean[~m], inner).log_prob(x[~m])
                if (~m).any()
                else torch.zeros(())
            )
            gain = across @ inner.inverse()
            yield m, log_p, mean[m] + gain @ (x - mean)[~m], covariance[m][:, m] - gain @ across.T


both = pytest.mark.parametrize("columns", [True, False], ids=["Columns", "Gaussian"])


@both
@torch.no_grad()
def test_the_evidence_of_what_was_observed_is_the_marginal_gaussians(columns):
    case = Incomplete(columns)
    expected = torch.stack([log_p for _, log_p, _, _ in case.rows()])
    found = case.vae.log_likelihood(case.x, 60_000)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
    assert (case.vae.elbo(case.x, 200).elbo < expected + 0.05).all()


@both
@torch.no_grad()
def test_imputation_is_the_conditional_gaussians(columns):
    case = Incomplete(columns)
    found = case.vae.impute(case.x, 20_000)
    assert torch.equal(found[~case.x.isnan()], case.x[~case.x.isnan()])
    assert torch.equal(found[0], case.x[0])
    for row, (m, _, mean, covariance) in zip(found, case.rows(), strict=True):
        error = (row[m] - mean) / covariance.diagonal().sqrt()
        assert (error.abs() < 0.15).all()


@torch.no_grad()
def test_draws_of_what_is_missing_are_the_conditional_gaussians():
    case = Incomplete()
    case.x = case.x[case.x.isnan().sum(1) == 2][:1]
    ((m, _, mean, covariance),) = case.rows()
    draws = case.vae.impute(case.x.expand(3000, -1), 300, draw=True)[:, m]
    error = (draws.mean(0) - mean) / covariance.diagonal().sqrt()
    assert (error.abs() < 0.1).all()
    torch.testing.assert_close(
        draws.T.cov(), covariance, rtol=0.15, atol=0.05 * covariance.max().item()
    )


@torch.no_grad()
def test_weights_of_imputation_do_not_depend_on_how_many_are_decoded_at_once(monkeypatch):
    case, found = Incomplete(), []
    for at_once in (64, 100_000):
        monkeypatch.setattr(vae_lab.imputation, "images_at_once", lambda *_, n=at_once: n)
        found.append(case.vae.impute(case.x, 2000))
    scale = case.vae.likelihood.kinds["gaussian"].scale
    assert ((found[0] - found[1]).abs() < 0.3 * scale).all()


def test_a_category_is_imputed_by_its_probabilities():
    """Half of z say 0.6 of one category and the others 0.9 of another: the other one it is."""
    likelihood = of_kind("categorical")
    logits = torch.tensor([[0.6, 0.4, 0, 0], [0.1, 0.9, 0, 0]]).clamp(min=1e-9).log()
    assert likelihood.show(likelihood.expected(logits).mean(0)).item() == 1
    assert likelihood.mean(logits).tolist() == [[0], [1]]


def test_a_row_of_which_nothing_was_observed_says_nothing():
    columns, x = everything()
    vae = VAE((len(columns),), MLP((8,)), Gaussian(2), Columns(columns, missing=True))
    vae.initialize(x)
    nothing = torch.full((5, len(columns)), torch.nan)
    vae.likelihood.check(nothing)
    terms = vae(nothing)
    terms.elbo.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())
    assert (vae.elbo(nothing).reconstruction == 0).all()
    vae.head.weight.data.zero_()
    vae.head.bias.data.zero_()
    torch.testing.assert_close(vae.log_likelihood(nothing, 5), vae(nothing).elbo * 0)
    assert vae.impute(nothing).isfinite().all()


def test_data_without_holes_stay_as_they_are():
    case = Incomplete()
    whole = case.x[:1]
    assert torch.equal(case.vae.impute(whole), whole)


def test_values_that_are_missing_do_not_reach_the_gradient():
    columns, x = everything()
    vae = VAE((len(columns),), MLP((8,)), Gaussian(2), Columns(columns, missing=True))
    vae.initialize(x)
    holes = with_holes(x)
    terms = vae(holes)
    terms.elbo.sum().backward()
    assert terms.elbo.isfinite().all()
    for name, p in vae.named_parameters():
        if name == "latent.prior_parameters":  # not trained
            continue
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_no_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="num_samples must be a positive integer, got 0"):
        Incomplete().vae.impute(torch.zeros(1, 4), 0)


@both
def test_what_is_masked_is_missing_to_a_model(columns):
    model = Incomplete(columns)
    masked = np.ma.array(model.x.nan_to_num(7.0).numpy(), mask=model.x.isnan().numpy())
    schema = getattr(model.vae.likelihood, "columns", None)
    found = as_data(masked, (4,), model.vae, columns=schema)
    torch.testing.assert_close(found, model.x, equal_nan=True, rtol=0, atol=0)


def test_what_lacks_nothing_stays_as_it_is():
    found = Incomplete()
    x = found.x[:1]
    assert torch.equal(found.vae.impute(x), x)
    assert torch.equal(found.vae.impute(x[:0]), x[:0])
