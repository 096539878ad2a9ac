"""A latent that is one class in a user's file: trained, evaluated, drawn, explored and released."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import torch.distributions as td
from PIL import Image
from tiny import Images, grid_vae
from torch import nn

from models.base import VAEModule
from vae_lab import VAE, register
from vae_lab.distributions import base
from vae_lab.drawing import gallery
from vae_lab.estimators import Reparameterization, ScoreFunction
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.decomposition import decompose
from vae_lab.evaluation.diagnosis import sizes
from vae_lab.explorer.edits import Explorer
from vae_lab.latents import Categorical, Discrete, Gaussian, Latent, Poisson
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO


class Gamma(Latent):
    """Positive numbers."""

    def __init__(self, latents: int = 3, learn_prior: bool = False) -> None:
        super().__init__((latents,), 2 * latents, learn_prior)
        self.latents = latents

    def distribution(self, parameters):
        concentration, rate = parameters.exp().chunk(2, -1)
        return self.independent(td.Gamma(concentration, rate, validate_args=False))


class Angle(Latent):
    """Angles, of which torch does not know the KL; a prior of concentration 1."""

    bounds = (-math.pi, math.pi)

    def __init__(self, latents: int = 3) -> None:
        super().__init__((latents,), 2 * latents, learn_prior=False)
        self.latents = latents

    def distribution(self, parameters):
        angle, log_concentration = parameters.chunk(2, -1)
        return self.independent(td.VonMises(angle, log_concentration.exp(), validate_args=False))

    def kl(self, q):
        q, p = base(q), base(self.prior())
        log_i0 = (torch.special.i0e(d.concentration).log() + d.concentration for d in (p, q))
        mean = torch.special.i1e(q.concentration) / torch.special.i0e(q.concentration)
        along = q.concentration - p.concentration * (q.loc - p.loc).cos()
        return next(log_i0) - next(log_i0) + mean * along


class Geometric(Discrete):
    """Counts of failures before a success."""

    def __init__(self, latents: int = 3) -> None:
        super().__init__((latents,), latents, learn_prior=False)
        self.latents = latents

    def distribution(self, parameters):
        return self.independent(td.Geometric(logits=parameters, validate_args=False))

    def mode(self, q):
        return torch.zeros_like(q.mean)


class GaussianGrid(Gaussian):
    """A Gaussian whose z is a picture of 2 x 2, with three channels."""

    def __init__(self) -> None:
        super().__init__(12)
        self.event_shape = (2, 2, 3)

    def distribution(self, parameters):
        mean, log_scale = parameters.unflatten(-1, (2, *self.event_shape)).unbind(-4)
        return self.independent(td.Normal(mean, log_scale.exp(), validate_args=False))


class CategoricalGrid(Categorical):
    """Three variables of four categories at each place of a grid of 2 x 2."""

    def __init__(self) -> None:
        super().__init__(12, 4)
        self.event_shape = (2, 2, 3, 4)


class Standard(nn.Module):
    """A prior for it that is a module."""

    def forward(self, condition):
        zeros = torch.zeros(2, 2, 3)
        return td.Independent(td.Normal(zeros, zeros + 1), 3)


CLASSES = [Gamma, Angle, Geometric, GaussianGrid, CategoricalGrid]
COUNTED = (Geometric, CategoricalGrid)
OWN = pytest.mark.parametrize("cls", CLASSES)


def small(cls):
    torch.manual_seed(0)
    return VAE(Images.shape, MLP((16,), "tanh"), cls(), Bernoulli()).eval()


def images():
    return Images().images.float() / 255


@OWN
def test_its_kl_is_what_its_samples_say(cls):
    latent = cls()
    q = latent.distribution(0.5 * torch.randn(4, latent.parameter_size))
    z = q.sample((20_000,))
    log_ratio = q.log_prob(z) - latent.prior().log_prob(z)
    error = log_ratio.std(0) / math.sqrt(len(z))
    assert latent.kl(q).shape == (4, latent.num_variables)
    assert ((log_ratio.mean(0) - latent.kl(q).sum(-1)).abs() < 4 * error).all()


@OWN
def test_it_is_trained(cls):
    """A model that ignores z is left at -60 log 2 = -41.6 nats."""
    model = VAEModule(
        shape=Images.shape,
        latent=cls(),
        network=MLP((32,)),
        likelihood=Bernoulli(),
        objective=ELBO(),
        estimator=ScoreFunction(8) if cls in (*COUNTED, Angle) else Reparameterization(4),
        optimizer=partial(torch.optim.Adam, lr=0.02),
    )
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=150, max_epochs=-1, **settings, **quiet)
    trainer.fit(model, Images())
    assert model.vae.eval().elbo(images(), 50).elbo.mean() > -40
    assert sizes(model.vae.latent)["latents"] == model.vae.latent.num_variables
    assert ("val/code_perplexity" in trainer.callback_metrics) == (cls is CategoricalGrid)


def test_a_sampled_kl_has_a_share_for_each_variable():
    vae = small(GaussianGrid)
    vae.prior = Standard()
    kl = vae.elbo(images(), 5).kl
    assert kl.shape == (16, vae.latent.num_variables) and (kl[:, 0] == kl[:, -1]).all()


@OWN
def test_it_is_evaluated(cls):
    x = images().repeat(4, 1, 1, 1)
    train = [(x, torch.arange(64) % 2)]
    found = evaluate(small(cls), [(x, torch.arange(64) % 2)], train=train, samples=50, ais_steps=5)
    metrics = {name: metric.value for name, metric in found.metrics.items()}
    assert {"log_likelihood", "mutual_information", "active_units", "linear_probe"} <= set(metrics)
    assert ("code_perplexity" in metrics) == (cls is CategoricalGrid)
    assert ("ais_log_likelihood" in metrics) == (cls is GaussianGrid)
    assert ("prior_gap" in metrics) == (cls in (GaussianGrid, CategoricalGrid))
    assert len(found.per_latent["marginal_kl"]) == cls().num_variables
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("images", [12, 40])
def test_densities_of_any_family_are_those_of_an_exponential_one(images):
    latent = Poisson(2)
    q = latent.distribution(0.5 * torch.randn(images, 2))
    torch.manual_seed(1)
    by_matrices = decompose(latent, q, points=30)
    latent.natural = lambda q: None
    torch.manual_seed(1)
    by_pairs = decompose(latent, q, points=30)
    for one, other in zip(by_matrices, by_pairs, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))


@OWN
def test_it_is_drawn(cls, tmp_path):
    x = images()
    files = gallery.draw(small(cls), x, torch.arange(len(x)) % 3, tmp_path)
    always = {"reconstructions", "samples", "interpolation", "traversals", "aggregate_posterior"}
    assert set(files) == always | {"latent_map"} | ({"codes"} if cls in COUNTED else set())
    for path in files.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize("cls", [Gamma, Geometric])
def test_it_is_drawn_and_explored_on_a_grid(cls, tmp_path):
    vae = grid_vae(cls())
    x = torch.rand(12, *vae.shape)
    files = gallery.draw(vae, x, torch.arange(12) % 3, tmp_path)
    assert {"kl_map", "value_maps", "place_traversals", "aggregate_posterior"} <= set(files)
    explored = Explorer(vae, x)
    z = explored.encode(x[0])
    painted = explored.painted(z, (1, 3), [1.0, 2.0, 1.0])
    changed = torch.tensor(explored.values(painted)) != torch.tensor(explored.values(z))
    assert {*changed.nonzero().flatten().tolist()} <= {*explored.variables((1, 3))}


@OWN
def test_it_is_explored(cls):
    explored = Explorer(small(cls), images())
    low, high = explored.latent.bounds
    assert explored.low.min() >= low and explored.high.max() <= high
    assert explored.kind == ("codes" if cls in COUNTED else "numbers")
    z = explored.encode(explored.images[0])
    assert explored.values(explored.edited(z, 1, 1.0))[1] == 1
    with pytest.raises(ValueError, match="z1 cannot have the value"):
        explored.edited(z, 1, math.nan if low == -math.inf else -4)
    for temperature in (0.5, 3.0):
        drawn = explored.latent.numbers(explored.samples(1000, temperature)).float()
        assert drawn.shape == (1000, len(explored.order))
        assert low <= drawn.min() and drawn.max() <= high
        again = explored.samples(1000, temperature)
        assert torch.equal(drawn, explored.latent.numbers(again).float())
    near, far = (explored.samples(1000, t).std(0) for t in (0.3, 1.0))
    assert explored.uniform or (near < far).all()
    path = explored.path(z, explored.encode(explored.images[5]))
    assert explored.decode(path).shape == (101, *Images.shape)


@OWN
def test_it_is_released(cls, tmp_path):
    vae, x = small(cls), images()
    with pytest.raises(ValueError, match=f"the latent {cls.__name__} could not be loaded"):
        vae.save_pretrained(tmp_path / "no")
    register(cls)
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path / "yes"))
    assert type(loaded.latent) is cls
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
