"""Distributions of one's own: what an estimator needs of them."""

import pytest
import torch
import torch.distributions as td
from torch.distributions import Independent, Normal

from vae_lab.aggregates import log_mean_exp
from vae_lab.distributions import bounds, can_detach, detach, kl, parameters, per_variable
from vae_lab.estimators import DReG, Reparameterization, ScoreFunction, StickingTheLanding


class Chain:
    """z_1 is normal, and z_2 normal around a z_1: an event of two numbers, no class of torch's."""

    has_rsample = True
    event_shape = torch.Size((2,))

    def __init__(self, mean, slope):
        self.mean, self.slope, self.batch_shape = mean, slope, mean.shape

    def rsample(self, shape=()):
        first = Normal(self.mean, 1.0).rsample(shape)
        return torch.stack([first, Normal(self.slope * first, 0.5).rsample()], -1)

    def sample(self, shape=()):
        return self.rsample(torch.Size(shape)).detach()

    def log_prob(self, z):
        first, second = z.unbind(-1)
        below = Normal(self.slope * first, 0.5).log_prob(second)
        return Normal(self.mean, 1.0).log_prob(first) + below


class Detachable(Chain):
    def detach(self):
        return Detachable(self.mean.detach(), self.slope.detach())


def leaves():
    return torch.randn(3, requires_grad=True), torch.tensor([0.5, -1.0, 2.0]).requires_grad_()


def log_ratio(estimator, q, p):
    return lambda z: p.log_prob(z) - estimator.density(q).log_prob(z)


@pytest.mark.parametrize("estimator", [StickingTheLanding(4), DReG(4)])
def test_an_own_distribution_says_how_it_is_detached(estimator):
    """Where q is the posterior, the gradient of every sample is zero, and not only the mean's."""
    q = Detachable(*leaves())
    assert estimator.accepts(q) and not parameters(q)
    p = q.detach()
    aggregate = {"aggregate": log_mean_exp} if estimator.multi_sample else {}
    value = estimator(q, log_ratio(estimator, q, p), **aggregate)
    for gradient in torch.autograd.grad(value.sum(), [q.mean, q.slope], retain_graph=True):
        assert gradient.abs().max() < 1e-5
    assert detach(q).mean.grad_fn is None and not detach(q).mean.requires_grad
    plain = Reparameterization(4)
    value = plain(q, log_ratio(plain, q, p))
    assert torch.autograd.grad(value.sum(), q.mean)[0].abs().max() > 0.01, "or this tests nothing"


@pytest.mark.parametrize("cls", [StickingTheLanding, DReG])
def test_its_gradient_is_right_elsewhere(cls):
    """KL of a chain to another, of which only the first mean differs: its half square."""
    mean, slope = leaves()
    q, p = Detachable(mean, slope), Detachable(torch.zeros(3), slope.detach())
    estimator = cls(20_000)
    value = estimator(q, log_ratio(estimator, q, p))
    gradient, of_slope = torch.autograd.grad(value.sum(), [mean, slope])
    torch.testing.assert_close(gradient, -mean.detach(), atol=0.05, rtol=0)
    assert of_slope.abs().max() < 0.1


def test_what_does_not_say_it_is_refused_in_a_line():
    q = Chain(*leaves())
    assert not can_detach(q) and ScoreFunction.accepts(q) and Reparameterization.accepts(q)
    for estimator in (StickingTheLanding(), DReG()):
        with pytest.raises(ValueError, match="made of its parameters alone, or has detach") as said:
            estimator(q, lambda z: z.sum(-1))
        assert "\n" not in str(said.value)


def test_no_data():
    q = Detachable(torch.zeros(0, requires_grad=True), torch.zeros(0, requires_grad=True))
    assert StickingTheLanding()(q, lambda z: z.sum(-1)).shape == (0,)


def test_the_wrapper_of_what_detaches_itself_stays():
    class Own(Normal):
        def detach(self):
            return Own(self.loc.detach(), self.scale.detach(), validate_args=False)

    q = Independent(Own(torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)), 1)
    assert detach(q).event_shape == (3,) and type(detach(q).base_dist) is Own
    assert not detach(q).base_dist.loc.requires_grad


def grid(make, *shape):
    """As the latent on a grid has it: a batch of 2, an event of 4 x 5 x 3."""
    return Independent(make(torch.randn(2, 4, 5, 3, *shape)), 3)


FAMILIES = [
    lambda x: Normal(x, x.exp()),
    lambda x: td.Bernoulli(logits=x),
    lambda x: td.Poisson(x.exp()),
    lambda x: td.Gamma(x.exp(), x.exp()),
]


@pytest.mark.parametrize("make", FAMILIES)
def test_the_kl_on_a_grid_is_of_each_variable(make):
    q, p = grid(make), grid(make)
    assert kl(q, p).shape == (2, 60)
    expected = td.kl_divergence(q.base_dist, p.base_dist).flatten(1)
    torch.testing.assert_close(kl(q, p), expected)


def test_axes_behind_the_variables_stay():
    q = grid(lambda x: td.OneHotCategorical(logits=x), 7)
    assert per_variable(q.base_dist.probs, q, last=1).shape == (2, 60, 7)
    joint = td.MultivariateNormal(torch.zeros(2, 3), torch.eye(3))
    assert kl(joint, joint).shape == (2, 1)  # variables that are not independent have one KL


def test_bounds():
    one = torch.ones(3)
    assert bounds(Normal(one, one)) == (-torch.inf, torch.inf)
    assert bounds(Independent(td.Gamma(one, one), 1)) == (0, torch.inf)
    assert bounds(td.Beta(one, one)) == (0, 1)
