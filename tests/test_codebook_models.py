"""Models with codebooks: their releases, what they refuse, and what is frozen or cast."""

import copy
import functools
import math
from types import SimpleNamespace

import pytest
import torch
from test_codebooks import SEEN, vq
from tiny import SHAPE, SMALL_GRID, binary_images, discrete_vae, grid_vae

from models import FSQVAE, LFQVAE, VQVAE
from vae_lab import VAE
from vae_lab.callbacks import FiniteUpdates
from vae_lab.conditions import InferredLabels
from vae_lab.description import assemble, blueprint
from vae_lab.estimators import ScoreFunction, VectorQuantization
from vae_lab.gradients import encoder_gradients, reference
from vae_lab.latents import FSQ, LFQ, Codebook, ResidualCodebook
from vae_lab.likelihoods import Bernoulli
from vae_lab.metrics import sums_and_count
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO
from vae_lab.schedules import Linear

pytestmark = pytest.mark.usefixtures("float64")


# Models, releases and refusals

MODELS = {
    "vq": (VQVAE, {"categories": 5, "dim": 2}),
    "residual": (VQVAE, {"categories": 5, "dim": 2, "depth": 3}),
    "fsq": (FSQVAE, {"levels": [3, 2]}),
    "lfq": (LFQVAE, {"latents": 3}),
}


def model(name, place=None, **settings):
    cls, own = MODELS[name]
    return cls(
        shape=SHAPE,
        network=place or MLP((3,)),
        likelihood=Bernoulli(),
        objective=ELBO(),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
        **own | settings,
    )


@pytest.mark.parametrize("place", [None, SMALL_GRID], ids=["flat", "grid"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "residual"])
def test_a_model_takes_the_nearest_code_or_with_another_estimator_any(name, place):
    nearest, drawn = model(name, place), model(name, place, estimator=ScoreFunction(4))
    assert nearest.vae.latent.deterministic and not drawn.vae.latent.deterministic
    with pytest.raises(ValueError, match="use one of VectorQuantization"):
        model(name, place, estimator=ScoreFunction(4), temperature=0.0)
    with pytest.raises(ValueError, match="VectorQuantization works with Quantized"):
        model(name, place, temperature=1.0)


@pytest.mark.parametrize("name", MODELS)
def test_a_release_comes_back(name):
    vae = model(name).vae
    x = binary_images(20)
    vae.train()(x)
    again = assemble(VAE, blueprint(vae), "here")
    again.load_state_dict(vae.state_dict())
    z, other = (v.eval().latent.mode(v.encode(x)) for v in (vae, again))
    assert torch.equal(z, other) and torch.equal(vae.decode(z), again.decode(z))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_that_is_left_out_teaches_nothing(name, tmp_path):
    module, callback = model(name).double(), FiniteUpdates(tmp_path / "debug.ckpt", "skip")
    plugin = SimpleNamespace(scaler=None)
    trainer = SimpleNamespace(precision_plugin=plugin, global_step=0, current_epoch=0)
    optimizer, x = torch.optim.Adam(module.parameters()), binary_images(20)
    callback.on_train_start(trainer, module)
    states = []
    for spoil in (1.0, math.nan, 1.0):
        terms = module.terms_of(x, torch.zeros(20))
        optimizer.zero_grad()
        (-terms.objective.mean() * spoil).backward()
        module.batch_terms = sums_and_count(terms) * spoil
        callback.on_before_backward(trainer, module, None)
        callback.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        states.append({k: v.clone() for k, v in module.vae.state_dict().items()})
    good, skipped, after = states
    assert all(torch.equal(good[k], skipped[k]) for k in good)
    assert all(v.isfinite().all() for v in after.values())
    learned = [k for k, _ in module.vae.latent.named_buffers(prefix="latent") if k in good]
    assert any(not torch.equal(after[k], skipped[k]) for k in learned)


REFUSED = [
    (lambda: Codebook(dim=0), "dim must be at least 1, got 0"),
    (lambda: Codebook(temperature=-1.0), "temperature must be positive, or 0 at all steps, got -1"),
    (lambda: Codebook(temperature=Linear(1.0, 0.0, 5)), "or 0 at all steps, got 0"),
    (lambda: Codebook(temperature=0.0, learn_temperature=True), "needs a positive temperature"),
    (lambda: Codebook(decay=1.0), r"decay must be in \[0, 1\), or null, got 1"),
    (lambda: Codebook(revive=2.0), r"revive must be in \[0, 1\), got 2"),
    (lambda: ResidualCodebook(depth=0), "depth must be at least 1, got 0"),
    (lambda: model("residual", cosine=True), "depth=3 adds up nearest .*: leave out cosine=True"),
    (lambda: model("residual", rotation=True), "leave out rotation=True"),
    (lambda: model("residual", temperature=0.5), "leave out temperature=0.5"),
    (lambda: model("residual", estimator=ScoreFunction(4)), "depth=3 .*: leave out estimator, or"),
    (lambda: FSQ(8), "levels must be a non-empty sequence of positive integers, got 8"),
    (lambda: FSQ((8,) * 8), "levels make 16777216 codes, at most 4194304 fit: use LFQ"),
    (lambda: FSQ((4, 1)), r"levels must be 2 or more of each dimension, got \[4, 1\]"),
    (lambda: VectorQuantization(-1.0), "commitment must not be negative, got -1"),
]


@pytest.mark.parametrize("make, message", REFUSED)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# What is frozen, what is cast, what is measured

FROZEN = {name: SEEN[name] for name in ("vq", "average", "fsq", "chain")}
FROZEN |= {"lfq": lambda: LFQ(4), "drawn": lambda: vq(temperature=1.0)}


@pytest.mark.parametrize("build", [discrete_vae, grid_vae])
@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_learns_nothing_of_a_batch(name, build):
    vae = build(FROZEN[name]()).train()
    x = binary_images(20, vae.shape)
    vae(x)
    vae.head.requires_grad_(False)  # with or without the encoder
    before = copy.deepcopy(vae.latent.state_dict())
    vae(x.roll(1, -1))
    assert all(torch.equal(tensor, before[n]) for n, tensor in vae.latent.state_dict().items())
    vae.head.requires_grad_()
    vae(x.roll(1, -1))
    assert any(not torch.equal(tensor, before[n]) for n, tensor in vae.latent.state_dict().items())


@pytest.mark.parametrize("name", FROZEN)
def test_no_data_teach_nothing(name):
    vae = discrete_vae(FROZEN[name]()).train()
    before = copy.deepcopy(vae.latent.state_dict())
    assert vae(binary_images(0, vae.shape)).objective.shape == (0,)
    assert all(torch.equal(tensor, before[n]) for n, tensor in vae.latent.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", FROZEN)
def test_weights_of_any_type(name, dtype):
    """What codes and moments are averages of stays in float32."""
    torch.set_default_dtype(torch.float32)
    vae = grid_vae(FROZEN[name]()).to(dtype).train()
    x = binary_images(6, vae.shape).to(dtype)
    vae(x).objective.sum().backward()
    assert vae.log_likelihood(x, 4).isfinite().all()
    kept = [b for b in vae.latent.buffers() if b.is_floating_point() and b.numel() > 1]
    assert all(
        b.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for b in kept
    )


@pytest.mark.parametrize("name", ["vq", "fsq", "lfq"])
def test_autocast_chooses_the_same_codes(name):
    torch.set_default_dtype(torch.float32)
    latent = FROZEN[name]().float()
    h = torch.randn(200, latent.parameter_size) @ torch.randn(latent.parameter_size).diag()
    latent.train().learn(h)
    with torch.autocast("cpu", torch.bfloat16):
        found = latent.numbers(latent.mode(latent.distribution(h)))
    assert torch.equal(found, latent.numbers(latent.mode(latent.distribution(h))))


def test_a_label_that_is_inferred_above_nearest_codes():
    vae = VAE(SHAPE, MLP((8,)), FSQ((3, 3)), Bernoulli(), condition=InferredLabels(3))
    x = binary_images(5, SHAPE)
    assert vae(x, y=torch.tensor([0, 1, 2, -1, -1])).objective.isfinite().all()


@pytest.mark.parametrize("name", ["vq", "fsq", "chain"])
def test_a_gradient_that_is_of_no_expectation_is_not_measured(name):
    vae = discrete_vae(SEEN[name]())
    with pytest.raises(ValueError, match="takes the nearest code, without randomness"):
        reference(vae, ELBO(), binary_images(3, vae.shape))


def test_a_measured_gradient_teaches_the_codes_nothing():
    vae = discrete_vae(vq(temperature=1.0)).train()
    x = binary_images(9, vae.shape)
    before = copy.deepcopy(vae.state_dict())
    encoder_gradients(vae, ELBO(), ScoreFunction(2), x, 3)
    assert all(torch.equal(tensor, before[n]) for n, tensor in vae.state_dict().items())
    assert vae.training


class Tripled(FSQ):
    def embed(self, z):
        return 3 * super().embed(z)


def test_a_latent_with_an_embedding_of_its_own_is_trained_with_it():
    vae = discrete_vae(Tripled((3, 3)))
    x = binary_images(5, vae.shape)
    terms = vae.eval()(x)
    torch.testing.assert_close(terms.reconstruction, vae.log_px_z(x, vae.mode(x)))


@pytest.mark.parametrize("name", ["vq", "average", "fsq", "chain"])
def test_codes_keep_their_digits_where_a_model_is_cast(name):
    torch.set_default_dtype(torch.float32)
    vae = grid_vae(FROZEN[name]()).float().train()
    vae(binary_images(6, vae.shape).float())
    before = copy.deepcopy(dict(vae.latent.named_buffers()))
    vae.bfloat16()
    assert all(torch.equal(b, before[n]) for n, b in vae.latent.named_buffers())


def test_measuring_a_gradient_leaves_all_modes_as_they_were():
    vae = discrete_vae(vq(temperature=1.0)).train()
    vae.encoder.eval()
    modes = [part.training for part in vae.modules()]
    with pytest.raises(ValueError, match="must have the shape"):
        encoder_gradients(vae, ELBO(), ScoreFunction(2), binary_images(3, (1, 9, 9)), 1)
    encoder_gradients(vae, ELBO(), ScoreFunction(2), binary_images(3, vae.shape), 1)
    assert [part.training for part in vae.modules()] == modes
