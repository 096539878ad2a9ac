"""A latent or a prior that is one class in a user's file: trained, evaluated, drawn, explored and
released."""

import inspect
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import torch.distributions as td
from PIL import Image
from tiny import Images, grid_of_colours
from torch import nn

import train
from models.base import VAEModule
from vae_lab import VAE, register, variables
from vae_lab.distributions import base
from vae_lab.drawing import gallery
from vae_lab.estimators import Reparameterization, ScoreFunction
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.decomposition import decompose
from vae_lab.evaluation.diagnosis import sizes
from vae_lab.explorer.edits import Explorer
from vae_lab.latents import Categorical, Discrete, Gaussian, Latent, Poisson
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP, Grid
from vae_lab.objectives import ELBO
from vae_lab.pretrained import card
from vae_lab.priors import Prior


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
        self.variables = (2, 2, 3)

    def distribution(self, parameters):
        mean, log_scale = parameters.unflatten(-1, (2, *self.event_shape)).unbind(-4)
        return self.independent(td.Normal(mean, log_scale.exp(), validate_args=False))


class CategoricalGrid(Categorical):
    """Three variables of four categories at each place of a grid of 2 x 2."""

    def __init__(self) -> None:
        super().__init__(12, 4)
        self.event_shape = (2, 2, 3, 4)  # as latents had to before there were grids


class Peaks(Prior):
    """A mixture of normal distributions around means that are learned."""

    def __init__(self, components: int = 2, reach: float = 2.0) -> None:
        super().__init__()
        self.components, self.reach = components, reach

    def bind(self, latent):
        self.means = nn.Parameter(self.reach * torch.randn(self.components, *latent.event_shape))

    def forward(self, condition):
        means = td.Independent(td.Normal(self.means, 1.0, False), self.means.ndim - 1, False)
        alike = td.Categorical(logits=torch.zeros_like(self.means.flatten(1)[:, 0]))
        return td.MixtureSameFamily(alike, means, validate_args=False)


class Codes(Prior):
    """Names whose frequencies come in several tables, of which one is chosen for all variables."""

    def __init__(self, tables: int = 3) -> None:
        super().__init__()
        self.tables = tables

    def bind(self, latent):
        self.logits = nn.Parameter(torch.randn(self.tables, *latent.event_shape))

    def forward(self, condition):
        codes = td.OneHotCategorical(logits=self.logits, validate_args=False)
        codes = td.Independent(codes, codes.logits.ndim - 2, False)
        alike = td.Categorical(logits=torch.zeros_like(self.logits.flatten(1)[:, 0]))
        return td.MixtureSameFamily(alike, codes, validate_args=False)


class Own(NamedTuple):
    """A model with a piece from outside, and what its latent is."""

    latent: Callable[[], Latent]
    prior: Callable[[], Prior] | None = None
    counted: bool = False  # its values can be counted
    listed: bool = False  # and named
    pathwise: bool = True  # its draws have a derivative
    grid: Grid | None = None  # its network, if that is fully convolutional

    @property
    def name(self) -> str:
        pieces = (*self.latent_and_prior(), self.grid)
        return "-".join(type(piece).__name__ for piece in pieces if piece)

    def latent_and_prior(self) -> tuple[Latent, Prior | None]:
        return self.latent(), self.prior and self.prior()


MODELS = [
    Own(Gamma),
    Own(Angle, pathwise=False),
    Own(Angle, pathwise=False, grid=Grid((12, 12))),  # of 2 x 2 places
    Own(Geometric, counted=True, pathwise=False),
    Own(GaussianGrid),
    Own(CategoricalGrid, counted=True, listed=True, pathwise=False),
    Own(partial(Gaussian, 3), Peaks),
    Own(GaussianGrid, Peaks),
    Own(partial(Categorical, 4, 3), Codes, counted=True, listed=True, pathwise=False),
]
OWN = pytest.mark.parametrize("own", MODELS, ids=lambda own: own.name)
LATENTS = pytest.mark.parametrize(
    "cls", [own.latent for own in MODELS if not own.prior and not own.grid]
)


def outside(own):
    """Its classes that are not vae_lab's."""
    return [type(p) for p in own.latent_and_prior() if type(p).__module__ == __name__]


def small(own):
    torch.manual_seed(0)
    latent, prior = own.latent_and_prior()
    network = own.grid or MLP((16,), "tanh")
    return VAE(Images.shape, network, latent, Bernoulli(), prior).eval()


def images():
    return Images().images.float() / 255


@LATENTS
def test_its_kl_is_what_its_samples_say(cls):
    latent = cls()
    q = latent.distribution(0.5 * torch.randn(4, latent.parameter_size))
    z = q.sample((20_000,))
    log_ratio = q.log_prob(z) - latent.prior().log_prob(z)
    error = log_ratio.std(0) / math.sqrt(len(z))
    assert latent.kl(q).shape == (4, latent.num_variables)
    assert ((log_ratio.mean(0) - latent.kl(q).sum(-1)).abs() < 4 * error).all()


def module(own):
    latent, prior = own.latent_and_prior()
    return VAEModule(
        shape=Images.shape,
        latent=latent,
        network=own.grid or MLP((32,)),
        likelihood=Bernoulli(),
        prior=prior,
        objective=ELBO(),
        estimator=Reparameterization(4) if own.pathwise else ScoreFunction(8),
        optimizer=partial(torch.optim.Adam, lr=0.02),
    )


def fit(model, steps, resumed=None):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, **settings, **quiet)
    trainer.fit(model, Images(), ckpt_path=resumed, weights_only=True)
    return trainer


@OWN
def test_it_is_trained(own):
    """A model that ignores z is left at -60 log 2 = -41.6 nats."""
    model = module(own)
    before = {n: p.clone() for n, p in model.vae.named_parameters() if n.startswith("prior.")}
    trainer = fit(model, 150)
    assert model.vae.eval().elbo(images(), 50).elbo.mean() > -40
    assert model.vae.kl(model.vae.encode(images())).shape == (16, model.vae.latent.num_variables)
    assert ("val/code_perplexity" in trainer.callback_metrics) == own.listed
    assert ("val/active_units" in trainer.callback_metrics) == (own.prior is None)
    assert len(before) == (own.prior is not None)
    after = model.vae.state_dict()
    assert all((after[name] - tensor).abs().max() > 0.01 for name, tensor in before.items())


@OWN
def test_it_goes_on_from_its_checkpoint(own, tmp_path):
    for cls in outside(own):
        register(cls)
    first = module(own)
    fit(first, 2).save_checkpoint(tmp_path / "two.ckpt")
    described = VAE.from_pretrained(tmp_path / "two.ckpt")
    assert same(described, first.vae) and repr(described.prior) == repr(first.vae.prior)
    resumed = module(own)
    assert fit(resumed, 4, tmp_path / "two.ckpt").global_step == 4
    assert not same(resumed.vae, first.vae)


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_sampled_kl_has_a_share_for_each_variable():
    vae = small(Own(GaussianGrid, Peaks))
    kl = vae.elbo(images(), 5).kl
    assert kl.shape == (16, vae.latent.num_variables) and (kl[:, 0] == kl[:, -1]).all()
    assert vae.kl(vae.encode(images())).shape == kl.shape


@OWN
def test_it_is_evaluated(own):
    x = images().repeat(4, 1, 1, 1)
    train = [(x, torch.arange(64) % 2)]
    vae = small(own)
    found = evaluate(vae, [(x, torch.arange(64) % 2)], train=train, samples=50, ais_steps=5)
    metrics = {name: metric.value for name, metric in found.metrics.items()}
    gaussian = isinstance(vae.latent, Gaussian)
    assert {"log_likelihood", "mutual_information", "varying_units", "linear_probe"} <= set(metrics)
    assert ("code_perplexity" in metrics) == own.listed
    assert ("ais_log_likelihood" in metrics) == gaussian
    assert ("prior_gap" in metrics) == (own.prior is None and (gaussian or own.listed))
    assert ("active_units" in metrics) == (own.prior is None) != ("aggregate_kl" in metrics)
    each = "activity" if own.prior else "marginal_kl"
    assert len(found.per_latent[each]) == sizes(vae.latent)["latents"]
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
def test_it_is_drawn(own, tmp_path):
    x = images()
    files = gallery.draw(small(own), x, torch.arange(len(x)) % 3, tmp_path)
    always = {"reconstructions", "samples", "interpolation", "traversals", "aggregate_posterior"}
    by_place = {"kl_map", "value_maps", "place_traversals"} if own.grid else set()
    codes = {"codes"} if own.counted else set()
    assert set(files) == always | {"latent_map"} | by_place | codes
    for path in files.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("latent", "prior"),
    [
        (Gamma(), None),
        (Geometric(), None),
        (Gaussian(3), Peaks()),
        (Categorical(3, 4), Codes()),
        (Categorical(1, 4), Codes()),
    ],
    ids=lambda piece: repr(piece),
)
def test_it_is_drawn_and_explored_on_a_grid(latent, prior, tmp_path):
    vae = grid_of_colours(latent, prior=prior)
    x = torch.rand(12, *vae.shape)
    files = gallery.draw(vae, x, torch.arange(12) % 3, tmp_path)
    assert {"value_maps", "traversals", "place_traversals", "aggregate_posterior"} <= set(files)
    assert ("kl_map" in files) == (prior is None)
    explored = Explorer(vae, x)
    assert explored.use.each.shape == (vae.latent.num_variables,)
    assert explored.use.name == ("KL" if prior is None else "variance")
    z = explored.encode(x[0])
    painted = explored.painted(z, (1, 3), [1.0, 2.0, 1.0][: len(explored.variables((1, 3)))])
    changed = torch.tensor(explored.values(painted)) != torch.tensor(explored.values(z))
    assert {*changed.nonzero().flatten().tolist()} <= {*explored.variables((1, 3))}


def test_another_prior_is_pooled_over_the_places():
    vae = grid_of_colours(Categorical(2, 4), prior=Codes())
    p = vae.prior.logits.softmax(-1).mean((0, 1, 2))  # over tables and places, [V, K]
    torch.testing.assert_close(variables.frequencies(vae), p, atol=0.03, rtol=0)
    vae = grid_of_colours(Gaussian(3), prior=Peaks())
    across, height = variables.densities(vae, [0, 2])  # [P, R]
    width = across[1] - across[0]
    torch.testing.assert_close((height * width).sum(0), torch.ones(2))
    mean = (height * across * width).sum(0)
    torch.testing.assert_close(mean, vae.prior.means.mean((0, 1, 2))[[0, 2]], atol=0.1, rtol=0)


def test_the_latents_own_prior_is_that_of_one_place():
    codes, numbers = Categorical(2, 4, learn_prior=True), Gaussian(2, learn_prior=True)
    here = deepcopy(codes), deepcopy(numbers)
    vaes = grid_of_colours(codes), grid_of_colours(numbers)
    for one, latent in zip(here, (codes, numbers), strict=True):
        one.load_state_dict(latent.state_dict())
    torch.testing.assert_close(variables.frequencies(vaes[0]), here[0].codes(here[0].prior()))
    across, height = variables.densities(vaes[1], [1])
    density = base(here[1].prior()).log_prob(across.expand(-1, 2)).exp()[:, 1:]
    assert across.shape == (200, 1)
    torch.testing.assert_close(height, density)


@OWN
def test_it_is_explored(own):
    explored = Explorer(small(own), images())
    low, high = explored.latent.bounds
    assert explored.low.min() >= low and explored.high.max() <= high
    assert explored.kind == ("codes" if own.counted else "numbers")
    z = explored.encode(explored.images[0])
    assert explored.values(explored.edited(z, 1, 1.0))[1] == 1
    with pytest.raises(ValueError, match="z1 cannot have the value"):
        explored.edited(z, 1, math.nan if low == -math.inf else -4)
    assert explored.has_temperature == (own.prior is None and not explored.uniform)
    assert explored.use.name == ("variance" if own.prior else "KL")
    for temperature in (1.0,) if own.prior else (0.5, 3.0):
        drawn = explored.latent.numbers(explored.samples(1000, temperature)).float()
        assert drawn.shape == (1000, len(explored.order))
        assert low <= drawn.min() and drawn.max() <= high
        again = explored.samples(1000, temperature)
        assert torch.equal(drawn, explored.latent.numbers(again).float())
    if explored.has_temperature:
        near, far = (explored.samples(1000, t).std(0) for t in (0.3, 1.0))
        assert (near < far).all()
    path = explored.path(z, explored.encode(explored.images[5]))
    assert explored.decode(path).shape == (101, *Images.shape)


@OWN
def test_it_is_released(own, tmp_path):
    vae, x = small(own), images()
    for cls in outside(own):
        with pytest.raises(ValueError, match=f"the (latent|prior) {cls.__name__} could not be"):
            vae.save_pretrained(tmp_path / "no")
        register(cls)
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path / "yes"))
    assert type(loaded.latent) is type(vae.latent) and type(loaded.prior) is type(vae.prior)
    assert card(tmp_path / "yes")["format"] == (2 if own.prior or own.grid else 1)
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    drawn = []
    for model in (loaded, vae):
        torch.manual_seed(1)
        drawn.append(model.sample(5))
    assert torch.equal(*drawn)


OWN_MODULE = """
import torch.distributions as td

import vae_lab
from vae_lab.latents import Latent


@vae_lab.register
"""
SEVERAL = """
import sys

import train
from commandline.check import exit_on_mistake

for line in sys.argv[1:]:
    sys.argv = ["train.py", *exit_on_mistake(line.split())]
    train.main()
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with two files more: a class, and the YAML that lists its arguments."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("commandline", "configs", "datamodules", "models", "tasks"):
        shutil.copytree(Path(train.__file__).with_name(name), folder / name)
    shutil.copy(train.__file__, folder)
    (folder / "mine.py").write_text(OWN_MODULE + inspect.getsource(Gamma))
    settings = "_target_: mine.Gamma\nlatents: 3\nlearn_prior: false\n"
    (folder / "configs" / "latent" / "mine.yaml").write_text(settings)
    return folder


def type_lines(checkout, *lines):
    """What `python train.py` says to each of them, in one new process."""
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parent)}
    command = [sys.executable, "-c", SEVERAL, *lines]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )


def test_it_is_chosen_by_its_file(checkout):
    trained = "experiment=smoke run_dir=x model=gaussian_vae latent=mine latent.learn_prior=true"
    measured = "evaluate.samples=20 evaluate.images=20 evaluate.parts=[bound,latents]"
    first = type_lines(checkout, trained)
    assert first.returncode == 0, first.stderr
    again = type_lines(
        checkout,
        "resume=x trainer.max_epochs=3",
        f"task=evaluate checkpoint=x {measured}",
        "task=report checkpoint=x",
    )
    assert again.returncode == 0, again.stderr
    register(Gamma)
    latent = VAE.from_pretrained(checkout / "x").latent
    assert (latent.latents, latent.learn_prior) == (3, True)
    assert "Gamma(latents=3, learn_prior=True)" in (checkout / "x" / "report.html").read_text()
    assert "latent=mine" in (checkout / "x" / "commands.txt").read_text()


def test_a_mistake_in_its_settings_is_one_line(checkout):
    typed = "latent=mine latent.latent=3", "latent=mine model.latents=3", "latent=mien"
    said = [type_lines(checkout, line).stderr for line in typed]
    assert said[0] == ("train.py: unknown setting latent.latent; did you mean latent.latents\n")
    assert "which latent=... replaces; type latent.latents=..." in said[1]
    assert "did you mean mine" in said[2]
