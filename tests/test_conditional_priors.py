"""Priors given y: each y has a density of its own, and a model's release gives it back."""

import math

import pytest
import torch
from prior_cases import CASES, LIMIT, SHAPE, conditional, make, parameters_of
from tiny import binary_images, randomize

from vae_lab import VAE, fit_prior
from vae_lab.distributions import support
from vae_lab.estimators import Exact
from vae_lab.evaluation.evidence import enumerated
from vae_lab.objectives import ELBO
from vae_lab.priors import Mixture

GIVEN = [case for case in CASES if case.values[2] != "vamp"]
given_y = pytest.mark.parametrize("latent, network, prior", GIVEN)


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


def test_a_second_stage_of_a_conditional_model_asks_for_labels():
    vae = conditional("codes", "flat", "mixture")
    with pytest.raises(ValueError, match="the model is conditional, it needs y, whole numbers, 0 "):
        fit_prior(vae, binary_images(6, SHAPE), Mixture(2), epochs=1)
