"""A prior that is trained for a model that is trained already, from Python and by command."""

import json
from pathlib import Path

import pytest
import torch
from tiny import binary_images, randomize
from torch import nn

import vae_lab
from vae_lab import VAE, likelihoods
from vae_lab.conditions import Labels
from vae_lab.latents import (
    FSQ,
    LFQ,
    Bernoulli,
    Categorical,
    Codebook,
    Gaussian,
    Poisson,
    ResidualCodebook,
)
from vae_lab.networks import MLP
from vae_lab.priors import Autoregressive, Flow, Mixture, Vamp

SHAPE = (1, 4, 4)
LATENTS = [Gaussian(2, learn_prior=True), Categorical(2, 3), Bernoulli(6), Poisson(2)]
LATENTS += [Codebook(2, 4, 2), Codebook(2, 4, 2, 0.0), FSQ((3, 2), 2), FSQ((2, 2), 2, 1.0)]
LATENTS += [LFQ(4), ResidualCodebook(1, 2, 4, 2)]
SMALL_PRIORS = [Mixture(3), Vamp(3), Autoregressive(8, 1, 2), Flow(hidden=(8,))]
QUIETLY = {"lr_warmup_steps": 0, "progress": False}
QUIET = ["logger=csv", "trainer=cpu", "trainer.enable_progress_bar=false", "report=false"]


def trained(latent):
    torch.manual_seed(0)
    vae = VAE(SHAPE, MLP((8,)), latent, likelihoods.Bernoulli())
    return randomize(vae, 0.5).eval()


def name(part):
    return type(part).__name__ + "-nearest" * getattr(part, "deterministic", False)


@pytest.mark.parametrize("latent", LATENTS, ids=name)
@pytest.mark.parametrize("prior", SMALL_PRIORS, ids=name)
def test_the_elbo_changes_by_what_the_posteriors_say_of_the_priors(latent, prior):
    if isinstance(prior, Flow) and not isinstance(latent, Gaussian):
        return
    if isinstance(prior, Vamp) and latent.deterministic:
        return
    vae, x = trained(latent), binary_images(100, SHAPE).float()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    second = vae_lab.fit_prior(vae, x, prior, epochs=150, batch_size=50, lr=1e-2, **QUIETLY)
    for name, tensor in second.state_dict().items():
        assert name.startswith("prior.") or torch.equal(tensor, before[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    with torch.no_grad():
        bound = vae.elbo(x, 500)
        z = bound.q.sample((500,))
        gain = (second.p_z().log_prob(z) - vae.p_z().log_prob(z)).mean()
        difference = second.elbo(x, 500).elbo.mean() - bound.elbo.mean()
    assert gain > 0.05  # nothing of the model was trained for its prior
    assert abs(difference - gain) < 0.05 + 0.02 * gain


def test_the_model_itself_is_not_touched():
    vae = trained(Gaussian(2, learn_prior=True))
    second = vae.with_prior(Mixture(2))
    assert all(p.requires_grad == n.startswith("prior.") for n, p in second.named_parameters())
    assert vae.prior is None and vae.latent.learn_prior and vae.encoder[1].weight.requires_grad
    with pytest.raises(ValueError, match="prior must be a vae_lab.priors.Prior, got Linear"):
        vae.with_prior(nn.Linear(1, 1))


@pytest.mark.parametrize("prior", SMALL_PRIORS, ids=name)
def test_a_prior_that_is_trained_is_trained_on(prior, tmp_path):
    """And not started anew, by data that it knows already; also one that was saved."""
    vae, x = trained(Gaussian(2)), binary_images(60, SHAPE).float()
    second = vae_lab.fit_prior(vae, x, prior, epochs=30, batch_size=20, lr=1e-2, **QUIETLY)
    second.save_pretrained(tmp_path)
    for model in (second, VAE.from_pretrained(tmp_path)):
        again = vae_lab.fit(x, model=model, epochs=1, batch_size=20, lr=1e-9, **QUIETLY)
        for a, b in zip(again.state_dict().values(), second.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of_z", [False, True])
@pytest.mark.parametrize("prior", [Mixture(3), Autoregressive(8, 1, 2)], ids=name)
def test_a_second_stage_of_a_model_with_labels(prior, of_z):
    torch.manual_seed(0)
    condition = Labels(3, prior=of_z)
    vae = VAE(SHAPE, MLP((8,)), Gaussian(2), likelihoods.Bernoulli(), condition=condition)
    x, y = binary_images(60, SHAPE).float(), torch.arange(60) % 3
    second = vae_lab.fit_prior(vae, x, prior, y=y, epochs=2, batch_size=20, **QUIETLY)
    assert second.elbo(x, y=y).elbo.isfinite().all()
    state = {n: t for n, t in vae.state_dict().items() if "to_prior" not in n}
    assert all(torch.equal(tensor, second.state_dict()[n]) for n, tensor in state.items())


def test_a_prior_that_has_nothing_to_learn_is_no_second_stage():
    with pytest.raises(ValueError, match="Standard has no parameters: type prior=mixture, vamp"):
        vae_lab.fit_prior(trained(Gaussian(2)), binary_images(9, SHAPE).float(), "standard")


def test_a_model_is_trained_on():
    vae, x = trained(Bernoulli(3)), binary_images(100, SHAPE).float()
    again = vae_lab.fit(x, model=vae, epochs=40, batch_size=20, lr=1e-2, **QUIETLY)
    assert again.elbo(x).elbo.mean() > vae.elbo(x).elbo.mean() + 1
    with pytest.raises(ValueError, match="the model has a latent already: leave out latent"):
        vae_lab.fit(x, model=vae, latent=Gaussian(2), progress=False)


@pytest.mark.parametrize("first", ["gaussian_vae", "vq_vae", "fsq_vae", "a release"])
def test_by_command(run, first, capsys):
    source = "gumbel_vae-digits"
    if first != "a release":
        line = ["data.val_size=100", "model.latents=3", "network.hidden=[8]"]
        run(*QUIET, f"model={first}", *line, "trainer.max_epochs=1", "run_dir=first")
        source = "first"
    prior = ["prior=mixture", "prior.components=4", "trainer.max_epochs=1"]
    run(*QUIET, "task=prior", f"checkpoint={source}", *prior, "run_dir=second")
    before, after = VAE.from_pretrained(source), VAE.from_pretrained("second")
    assert repr(after.prior) == "Mixture(components=4)"
    state = after.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())
    found = json.loads(Path("second/second_stage.json").read_text())["nats"]
    assert found["elbo_after"] == pytest.approx(found["elbo_before"] + found["difference"])
    assert "difference = E_q[log p'(z) - log p(z)]" in capsys.readouterr().out
    run("resume=second", "trainer.max_epochs=2")
    moved = VAE.from_pretrained("second").state_dict()
    assert all(torch.equal(moved[name], tensor) for name, tensor in before.state_dict().items())
    assert not torch.equal(moved["prior.weights"], state["prior.weights"])
    again = json.loads(Path("second/second_stage.json").read_text())["nats"]
    assert again["elbo_before"] == found["elbo_before"]
    assert again["difference"] != found["difference"]  # of another epoch
    if (
        first == "gaussian_vae"
    ):  # trained on, it is no longer that which the second stage began with
        run("resume=first", "trainer.max_epochs=2")
        run("resume=second", "trainer.max_epochs=3")
        assert not Path("second/second_stage.json").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["task=prior", "prior=vamp"], "task=prior needs a trained model: type checkpoint="),
        (["task=prior", "checkpoint=gumbel_vae-digits"], "needs a prior to train: type prior=NAME"),
        (["task=prior", "checkpoint=gumbel_vae-digits", "prior=flow"], "a flow is over numbers"),
        (["task=prior", "checkpoint=gumbel_vae-digits", "prior=standard"], "has no parameters"),
    ],
)
def test_what_is_missing_is_one_line(run, line, said, capsys):
    with pytest.raises(SystemExit):
        run(*QUIET, *line)
    assert said in capsys.readouterr().err
