"""The Lightning modules: what they train, and that every setting of theirs does something."""

import csv
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import Precision
from stand_ins import trainer
from tiny import Images

from commandline.signatures import _of_node
from models import GaussianVAE, GumbelVAE, PoissonVAE, ReinforceVAE
from models.base import VAEModule
from vae_lab import VAE
from vae_lab.callbacks import StepSeed
from vae_lab.estimators import RELAX, Exact, ScoreFunction
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.losses import Adversarial
from vae_lab.networks import MLP, Grid, Linear
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO
from vae_lab.optimization import rate_factor
from vae_lab.schedules import Linear as LinearSchedule
from vae_lab.schedules import Staircase

MODELS = [GaussianVAE, GumbelVAE, PoissonVAE, ReinforceVAE]
EXACT = {"latents": 3, "categories": 2, "estimator": Exact()}
sgd = partial(torch.optim.SGD, lr=0.01)


def make(cls, **changes):
    torch.manual_seed(5)
    settings = {
        "shape": Images.shape,
        "network": MLP((8,)),
        "likelihood": Bernoulli(),
        "objective": ELBO(),
        "optimizer": partial(torch.optim.Adam, lr=0.02),
    }
    return cls(**(settings | changes))


def fit(model, steps=3, data=None, **options):
    """Trains; returns the model's parameters after that, as one vector."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[StepSeed(0)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **{"limit_val_batches": 0, **options},
    )
    trainer.fit(model, data or Images())
    return vector(model)


def vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def step(model, x, size=None, world_size=1):
    """The gradient of one process's training step."""
    model.zero_grad()
    model.trainer = SimpleNamespace(world_size=world_size)
    model.training_step((x, None, size or len(x)), 0).backward()
    return torch.cat([p.grad.flatten() for p in model.vae.parameters() if p.requires_grad])


def images(count=6):
    return torch.rand(count, *Images.shape).round()


def small_discrete(**changes):
    return make(GumbelVAE, **EXACT, **changes)


@pytest.mark.parametrize("cls", MODELS)
def test_it_learns_sixteen_images(cls):
    """A model that ignores z is left at -60 log 2 = -41.6 nats, the best possible at -2.8."""
    model = make(cls, network=MLP((64,)), latents=8)
    x = Images().images.float() / 255
    before = model.vae.elbo(x, 50).elbo.mean()
    fit(model, steps=100)
    after = model.vae.elbo(x, 50).elbo.mean()
    assert before < -42 and after > -20


SETTINGS = [
    (cls, setting)
    for cls in MODELS
    for setting in (
        {"latents": 5},
        {"learn_prior": True},
        {"num_samples": 6},
        {"network": MLP((8,), "tanh")},
        {"objective": ELBO(beta=0.5)},
        {"objective": ELBO(beta=LinearSchedule(0.0, 1.0, 2))},
        {"objective": ELBO(free_bits=0.5)},
        {"objective": IWAE()},
        {"objective": MonteCarloELBO()},
        {"optimizer": partial(torch.optim.Adam, lr=0.01)},
        {"optimizer": partial(torch.optim.Adam, lr=0.02, betas=(0.5, 0.9))},
        {"optimizer": partial(torch.optim.Adam, lr=0.02, eps=0.1)},
        {"optimizer": partial(torch.optim.Adam, lr=0.02, weight_decay=0.1)},
        {"lr_warmup_steps": 10},
        {"lr_decay": "cosine"},
    )
]
SETTINGS += [(cls, {"categories": k}) for cls in (GumbelVAE, ReinforceVAE) for k in (3, None)]
SETTINGS += [
    (GumbelVAE, {"temperature": 0.5}),
    (GumbelVAE, {"temperature": LinearSchedule(1.0, 0.5, 2)}),
    (GumbelVAE, {"hard": True}),
    (PoissonVAE, {"degree": 3}),
    (GumbelVAE, {"estimator": ScoreFunction()}),
    (ReinforceVAE, {"baseline": "none"}),
    (ReinforceVAE, {"baseline": "moving_average"}),
    (ReinforceVAE, {"baseline": "learned"}),
]


@pytest.fixture(scope="module")
def usual():
    return {cls: fit(make(cls)) for cls in MODELS}


@pytest.mark.parametrize("cls, setting", SETTINGS)
def test_every_setting_changes_the_model(cls, setting, usual):
    changed = fit(make(cls, **setting))
    assert changed.isfinite().all()
    assert changed.shape != usual[cls].shape or not torch.equal(changed, usual[cls])


@pytest.mark.parametrize("cls", MODELS)
def test_the_same_settings_give_the_same_model(cls, usual):
    assert torch.equal(fit(make(cls)), usual[cls])


def test_a_trainer_of_ones_own_returns_and_logs_what_it_measured(tmp_path):
    model, data = make(GaussianVAE, latents=2), Images(8)
    data.test_dataloader = data.train_dataloader
    run = trainer(logger=CSVLogger(tmp_path), max_epochs=6, accumulate_grad_batches=2)
    run.fit(model, data)
    (val,) = run.validate(model, data, verbose=False)
    (test,) = run.test(model, data, verbose=False)
    assert val.keys() == {"val/elbo", "val/reconstruction", "val/kl", "val/active_units"}
    assert test.keys() == {"test/elbo", "test/reconstruction", "test/kl", "test/active_units"}
    with (Path(run.logger.log_dir) / "metrics.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)][-2:]
    for row, found in zip(rows, (val, test), strict=True):
        assert found == {name: float(row[name]) for name in found}
        assert row["step"] == "6"


def test_the_learning_rate_of_the_estimator_is_its_own():
    rates = (None, 0.02, 0.1)
    models = [make(ReinforceVAE, baseline="learned", estimator_lr=rate) for rate in rates]
    same, again, faster = [(fit(m), vector(m.estimator)) for m in models]
    assert torch.equal(same[1], again[1]) and not torch.allclose(same[1], faster[1])
    first = [vector(make(ReinforceVAE, baseline="learned", estimator_lr=r).vae) for r in rates]
    assert torch.equal(first[0], first[2])


def test_the_learning_rate_of_a_learned_sigma_is_its_own():
    def sigma(**settings):
        model = make(GaussianVAE, likelihood=Normal(0.25, learned=True), **settings)
        fit(model)
        return model.vae.likelihood.log_sigma.item()

    assert sigma(likelihood_lr=0.02) == sigma()
    assert abs(sigma(likelihood_lr=0.2) - sigma(likelihood_lr=0.0)) > 0.3
    assert sigma(likelihood_lr=0.0) == pytest.approx(math.log(0.25))


def test_a_likelihood_with_a_rate_is_a_group_without_decay():
    model = make(
        ReinforceVAE,
        likelihood=Normal(0.25, learned=True),
        baseline="learned",
        likelihood_lr=0.2,
        optimizer=partial(torch.optim.AdamW, weight_decay=0.5),
    )
    groups = model._fresh_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.0]
    assert groups[2]["lr"] == 0.2 and groups[2]["params"] == [model.vae.likelihood.log_sigma]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, trained)) == sorted(id(p) for g in groups for p in g["params"])


def test_the_group_of_an_estimator_has_all_of_its_parameters():
    """Also those that are not trained: the states of saved optimizers count on them."""
    relax = RELAX()
    model = make(GumbelVAE, estimator=relax)
    assert not all(p.requires_grad for p in relax.parameters())
    [_, own] = model._fresh_optimizer().param_groups
    assert own["params"] == [*relax.parameters()]


def rates(model, steps):
    """What the learning rate is multiplied by."""
    [factor] = model.trainer.lr_scheduler_configs[0].scheduler.lr_lambdas
    return [factor(step) for step in range(steps)]


def test_the_learning_rate_warms_up_and_then_falls_to_zero():
    model = make(GaussianVAE, lr_warmup_steps=4, lr_decay="cosine")
    fit(model, steps=12)
    factors = rates(model, 13)
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in zip(factors[4:], factors[5:], strict=False))
    assert factors[8] == pytest.approx(0.5) and factors[12] == pytest.approx(0)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 10), (5, 5), (9, 4)])
def test_the_learning_rate_is_its_formula_to_the_bit(warmup, steps):
    """Runs of older versions go on with the same numbers."""
    factor = rate_factor(warmup, "cosine", lambda: steps)
    for step in range(warmup):
        assert factor(step) == (step + 1) / warmup
    for step in range(warmup, 2 * steps):
        fraction = min((step - warmup) / max(steps - warmup, 1), 1.0)
        assert factor(step) == 0.5 * (1 + math.cos(math.pi * fraction))


def test_a_training_without_an_end_has_no_decay():
    factor = rate_factor(2, "cosine", lambda: math.inf)
    assert [factor(step) for step in range(4)] == [0.5, 1, 1, 1]


def test_after_the_warm_up_the_learning_rate_follows_a_schedule():
    model = make(GaussianVAE, lr_warmup_steps=2, lr_decay=Staircase(1.0, 0.25, 3, 1, 2))
    fit(model, steps=3)
    assert rates(model, 7) == [0.5, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert {*model.schedules} == {"beta"}, "it is the optimizer's, and no number of the loss"


def test_without_decay_the_learning_rate_stays():
    model = make(GaussianVAE, lr_warmup_steps=2)
    fit(model, steps=5)
    assert rates(model, 5) == [0.5, 1, 1, 1, 1]


def test_the_gradient_of_a_batch_is_the_mean_of_its_data():
    model, x = small_discrete(objective=ELBO(free_bits=0.1)), images()
    alone = torch.stack([step(model, x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(step(model, x), alone.mean(0))


@pytest.mark.parametrize("sizes", [(3, 3), (5, 1), (6, 0)])
def test_two_processes_take_the_step_of_one(sizes):
    """DDP averages what the two give, however few images one of them has."""
    model, x = small_discrete(), images()
    parts = [step(model, part, len(x), world_size=2) for part in x.split(sizes)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, step(model, x))
    unscaled = [step(model, part, len(part) or 1) for part in x.split(sizes)]
    mean_of_means = torch.allclose((unscaled[0] + unscaled[1]) / 2, step(model, x), atol=1e-4)
    assert mean_of_means is (sizes == (3, 3)), "else it must fail, or this tests nothing"


@pytest.mark.parametrize("objective", [ELBO(), IWAE()])
@pytest.mark.parametrize("cls", MODELS)
def test_a_process_without_images_has_a_gradient_of_zero(cls, objective):
    model = make(cls, objective=objective, latents=3)
    assert not step(model, images(0), size=1, world_size=2).any()
    model.validation_step((images(0), None, 1), 1)


def test_accumulation_takes_the_step_of_the_whole_batch():
    whole = fit(small_discrete(optimizer=sgd), 2, Images(batch_size=16))
    halves = fit(small_discrete(optimizer=sgd), 2, Images(batch_size=8), accumulate_grad_batches=2)
    torch.testing.assert_close(halves, whole)
    alone = fit(small_discrete(optimizer=sgd), 2, Images(batch_size=8))
    assert not torch.allclose(alone, whole)


def test_a_fresh_decoder_starts_at_the_mean_image():
    model, data = make(GaussianVAE), Images()
    fit(model, steps=0)
    expected = model.vae.likelihood.bias(data.train_mean())
    torch.testing.assert_close(model.vae.output_bias.detach(), expected)


@pytest.mark.parametrize(("network", "asked"), [(MLP((8,)), ()), (Grid((4,)), (1000,))])
def test_a_grid_starts_at_the_mean_of_fewer_images(network, asked):
    """One number a channel needs no more, and to read them takes a while."""
    model, seen = make(GaussianVAE, network=network), []

    def train_mean(*most):
        seen.append(most)
        return Images().train_mean()

    data = SimpleNamespace(train_mean=train_mean)
    model.trainer = SimpleNamespace(datamodule=data, precision_plugin=Precision())
    model.setup("fit")
    assert seen == [asked]


def test_a_loaded_decoder_keeps_its_bias():
    model = make(GaussianVAE)
    with torch.no_grad():
        model.vae.output_bias.fill_(0.7)
    fit(model, steps=0)
    assert (model.vae.output_bias == 0.7).all()


def test_no_data_module_no_bias():
    model = make(GaussianVAE)
    model.trainer = SimpleNamespace(datamodule=None, precision_plugin=Precision())
    model.setup("fit")
    assert not model.vae.output_bias.any()


def test_schedules_follow_the_optimizer_steps():
    """Two batches a step: the temperature moves with steps, not with batches."""
    temperature, beta = LinearSchedule(1.0, 0.5, 10), LinearSchedule(0.0, 1.0, 10)
    model = make(GumbelVAE, temperature=temperature, objective=ELBO(beta))
    fit(model, 4, Images(batch_size=4), accumulate_grad_batches=2)
    assert temperature.value.item() == pytest.approx(0.85)  # that of the fourth step
    assert model.latest["train/temperature"] == pytest.approx(0.85)
    assert model.latest["train/beta"] == pytest.approx(0.3)


def test_what_an_objective_has_to_say_is_logged():
    model = make(GaussianVAE, objective=Adversarial(channels=(4,)))
    fit(model, 1)
    assert model.latest["train/discriminator_loss"] == model.objective.logged().popitem()[1].item()


@pytest.mark.parametrize("cls", MODELS)
def test_validation_shows_the_true_elbo(cls):
    model = make(cls, objective=ELBO(beta=0.0))
    fit(model, 1, limit_val_batches=1.0)
    metrics = model.trainer.callback_metrics
    elbo = metrics["val/reconstruction"] - metrics["val/kl"]
    torch.testing.assert_close(metrics["val/elbo"], elbo, rtol=1e-6, atol=0)
    assert ("val/elbo_relaxed" in metrics) is (cls is GumbelVAE)
    assert ("val/code_perplexity" in metrics) is (cls in (GumbelVAE, ReinforceVAE))


def test_a_checkpoint_is_plain_and_restores_the_model(tmp_path):
    model = small_discrete(objective=ELBO(LinearSchedule(0.0, 1.0, 9)))
    model.config = {"seed": 1}
    fit(model)
    model.trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["config"] == {"seed": 1} and saved["global_step"] == 3
    other = small_discrete()
    other.load_state_dict(saved["state_dict"])
    assert torch.equal(vector(other), vector(model))


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"lr_warmup_steps": -1}, "lr_warmup_steps must not be negative, got -1"),
        ({"lr_decay": "step"}, "lr_decay must be none or cosine, got 'step'"),
        ({"latents": 0}, "latents must be at least 1, got 0"),
        ({"baseline": "best"}, "baseline must be one of none, .*, got 'best'"),
        ({"num_samples": 1}, "num_samples must be an integer of at least 2, got 1"),
        ({"estimator": Exact()}, "Exact would enumerate 10\\^20 states"),
    ],
)
def test_refusals_come_at_construction(setting, message):
    with pytest.raises(ValueError, match=message):
        make(ReinforceVAE, **setting)


class Undecided(VAEModule):
    """Hands on what a config says of the model's own estimator: nothing."""

    def __init__(self, *, estimator=None, **shared):
        super().__init__(latent=Gaussian(2), estimator=estimator, **shared)


class Unaware(VAEModule):
    def __init__(self, **shared):
        super().__init__(latent=Gaussian(2), **shared)


def test_a_model_without_an_estimator_of_its_own_hears_what_its_constructor_must_do():
    with pytest.raises(ValueError, match="Undecided's constructor has to pass on its own choice"):
        make(Undecided)
    node = {"_target_": f"{__name__}.Unaware", "estimator": None}
    [line] = _of_node(node, "model")
    assert line.startswith("model.estimator must be Estimator, got None: type estimator=NAME, or")


def test_construction_leaves_the_random_numbers_alone():
    """The trial step draws samples, but the first draw of the run is what it was."""
    draws = []
    for cls in (GaussianVAE, partial(GaussianVAE, num_samples=7)):
        make(cls, network=Linear())
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


@pytest.mark.parametrize("cls", MODELS)
def test_what_is_trained_is_a_vae_that_can_be_released(cls, tmp_path):
    model = make(cls)
    fit(model)
    loaded = VAE.from_pretrained(model.vae.save_pretrained(tmp_path))
    x = images()
    assert torch.equal(loaded.reconstruct(x), model.vae.eval().reconstruct(x))
