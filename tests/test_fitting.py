"""vae_lab.fit: as train.py, the parts it is given or chooses, the best weights, what it shows."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_fits import X, same, small

import vae_lab
from datamodules.digits import Digits
from vae_lab import VAE
from vae_lab.estimators import REBAR, GumbelSoftmax, ScoreFunction, VectorQuantization
from vae_lab.fitting.parts import estimator_for, network_for
from vae_lab.latents import FSQ, LFQ, Categorical, Codebook, CorrelatedGaussian, Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.networks import MLP, Conv, Grid
from vae_lab.objectives import ELBO
from vae_lab.schedules import Exponential, Staircase
from vae_lab.schedules import Linear as LinearSchedule

# The same as train.py


TYPED = [
    *("data=digits", "data.binarize=none", "data.eval_batch_size=512", "data.val_size=200"),
    *("network.hidden=[32,16]", "trainer=cpu", "threads=1", "trainer.max_epochs=2", "seed=7"),
    *("trainer.enable_progress_bar=false", "logger=csv", "callbacks.pictures=null"),
    *("report=false", "run_dir=run", "model.latents=4", "model.lr_warmup_steps=20"),
]
AS_TYPED = {
    "network": MLP((32, 16)),
    "batch_size": 50,
    "lr": 1e-3,
    "lr_warmup_steps": 20,
    "val_size": 200,
    "epochs": 2,
    "seed": 7,
    "device": "cpu",
    "progress": False,
}
SAME = {  # what is typed, and what is passed
    "gaussian_vae": (["objective=elbo_warmup"], {"objective": ELBO(LinearSchedule(0, 1, 1000))}),
    "gumbel_vae": (
        [],
        {
            "latent": Categorical(4, 10),
            "estimator": GumbelSoftmax(Exponential(1.0, 0.5, 2000)),
        },
    ),
    "reinforce_vae": (
        ["model.baseline=learned", "model.estimator_lr=0.01"],
        {
            "latent": Categorical(4, 10),
            "estimator": ScoreFunction(4, "learned"),
            "estimator_lr": 0.01,
        },
    ),
    "fsq_vae": (
        ["model.levels=[3,4]"],
        {"latent": FSQ((3, 4), 4), "estimator": VectorQuantization(commitment=0.0)},
    ),
}


STAIRS = "{_target_: vae_lab.schedules.Staircase, start: 1, end: 0.1, stages: 3, first_steps: 9}"


@pytest.mark.parametrize("extra", ["plain", "averaged", "in stages"])
@pytest.mark.parametrize("model", SAME)
def test_the_weights_are_those_of_train_py_bit_for_bit(run, model, extra):
    typed, passed = SAME[model]
    if extra == "averaged":
        typed = [*typed, "ema=0.9", "trainer.gradient_clip_val=0.5", "model.lr_decay=none"]
        passed = passed | {"ema": 0.9, "gradient_clip_val": 0.5, "lr_decay": "none"}
    if extra == "in stages":
        typed = [*typed, f"model.lr_decay={STAIRS}"]
        passed = passed | {"lr_decay": Staircase(1.0, 0.1, 3, 9)}
    run(f"model={model}", *TYPED, *typed)
    x = Digits().load().train
    if "latent" not in passed:
        passed = passed | {"latent": Gaussian(4)}
    assert same(vae_lab.fit(x, **AS_TYPED | passed), VAE.from_pretrained("run"))


def test_another_seed_has_other_weights():
    assert same(small(X), small(X)) and not same(small(X), small(X, seed=1))


# The parts


def test_a_part_is_an_object_a_class_or_a_name():
    settings = {"latent": Categorical(2, 3)}
    models = [small(X, estimator=e, **settings) for e in (REBAR(), REBAR, "rebar", "REBAR")]
    assert all(same(model, models[0]) for model in models)
    assert not same(small(X, **settings), models[0])


def test_the_parts_that_are_given_are_left_alone():
    likelihood = Normal(0.5, learned=True)
    small(X, likelihood=likelihood)
    assert likelihood.log_sigma == torch.tensor(0.5).log()


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((6,), MLP((64,), "silu")),
        ((30,), MLP((128,), "silu")),
        ((1, 8, 8), MLP((256,), "silu")),
        ((1, 28, 28), Conv((32, 64))),
        ((3, 64, 64), Conv((32, 64, 128, 256))),
        ((3, 96, 96), Grid()),
    ],
)
def test_what_is_left_open_suits_the_data(shape, network):
    vae = vae_lab.fit(
        torch.rand(4, *shape), epochs=1, progress=False, val_size=1, likelihood=Bernoulli()
    )
    assert vae.network == network and type(vae.latent) is Gaussian


@pytest.mark.parametrize(
    ("shape", "network"), [((6,), MLP((64, 32))), ((30,), MLP((256, 128))), ((1, 28, 28), Conv())]
)
def test_of_many_data_a_network_has_more_layers(shape, network):
    assert network_for(shape, 2000) == network


def test_a_bound_of_several_samples_has_several():
    assert not same(small(X, objective="iwae"), small(X))


@pytest.mark.parametrize(
    "latent", [Codebook(1, 4, 2, temperature=0.0), FSQ([3, 2]), LFQ(3)], ids=repr
)
def test_codes_that_are_the_nearest_are_trained_as_those_of_a_vq_vae(latent):
    vae = vae_lab.fit(X, latent=latent, likelihood=Bernoulli(), epochs=2, progress=False)
    assert math.isfinite(vae.history[-1]["train/elbo"])
    assert isinstance(estimator_for(latent, ELBO()), VectorQuantization)


def test_data_with_missing_values_have_a_posterior_with_correlations():
    x = torch.randn(60, 6)
    assert type(vae_lab.fit(x, epochs=1, progress=False).latent) is Gaussian
    x[0, 0] = torch.nan
    vae = vae_lab.fit(x, epochs=1, progress=False)
    assert type(vae.latent) is CorrelatedGaussian and vae.latent.latents == 3
    assert vae.impute(x).isfinite().all()


# The best weights


def test_the_best_weights_are_those_of_the_model():
    vae = small(X, epochs=30, lr=0.1, lr_decay="none")
    elbos = [row["val/elbo"] for row in vae.history]
    best = max(range(30), key=elbos.__getitem__)
    assert best < 29
    assert same(vae, small(X, epochs=best + 1, lr=0.1, lr_decay="none"))


def test_training_stops_without_a_better_elbo():
    whole = small(X, epochs=30, lr=0.1)
    early = small(X, epochs=30, lr=0.1, patience=3)
    assert early.history == whole.history[: len(early.history)] and len(early.history) < 30
    elbos = [row["val/elbo"] for row in early.history]
    assert max(elbos[:-3]) > max(elbos[-3:])


def test_the_default_patience_is_a_fifth_of_the_epochs():
    settings = {"lr": 0.1, "lr_decay": "none", "epochs": 200}
    history = small(X, **settings).history
    assert len(history) < 200 and history == small(X, **settings, patience=40).history


def test_patience_waits_for_the_whole_weight_of_the_kl():
    objective = ELBO(LinearSchedule(0, 1, 30))
    early = small(X, epochs=30, lr=0.1, patience=1, objective=objective)
    assert early.history[-1]["step"] > 30


def test_the_random_state_and_the_modes_of_the_caller_stay():
    before = torch.get_rng_state()
    with torch.no_grad():
        small(X)
    with torch.inference_mode():
        vae = small(X)
    assert torch.equal(torch.get_rng_state(), before)
    assert vae(X).objective.requires_grad


def test_a_training_that_diverges_says_so():
    with pytest.raises(FloatingPointError, match=r"train/objective is .* at step .*: try a lower"):
        small(X, likelihood=Normal(1e-4), lr=1e15, epochs=50, lr_warmup_steps=0)


# What is shown


def test_a_line_says_what_came_out(capsys):
    small(X, progress=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("epoch 2/2  val/elbo -") and "best -" in line and line.endswith(" s")
    small(X)
    assert not any(capsys.readouterr())


@pytest.mark.parametrize(("term", "shown"), [("xterm", "6/6"), ("dumb", "ETA 0:00")])
def test_on_a_terminal_there_is_a_bar_and_lines_where_it_cannot_move(
    monkeypatch, capsys, term, shown
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("vae_lab.fitting.progress.REDRAW_SECONDS", 0.0)
    monkeypatch.setattr("vae_lab.fitting.progress.LINE_SECONDS", 0.0)
    small(X, progress=True)
    assert shown in capsys.readouterr().out


BARE = """
import sys
for name in ("pytorch_lightning", "hydra", "omegaconf", "torchmetrics", "rich", "sklearn", "PIL"):
    sys.modules[name] = None
import torch
import vae_lab
from vae_lab.likelihoods import Bernoulli
vae = vae_lab.fit((torch.rand(50, 4) < 0.5).float(), likelihood=Bernoulli(), epochs=2)
vae.save_pretrained("model")
"""


def test_it_needs_no_more_than_what_pip_installs(tmp_path):
    env = {"PYTHONPATH": str(Path(vae_lab.__file__).parents[1]), "PATH": ""}
    subprocess.run([sys.executable, "-c", BARE], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "model" / "model.safetensors").exists()
