"""What a run says of its own settings: when, and whether what it says to type helps."""

import math
import re

import pytest
import torch
from test_configs import config
from test_train import CSV

from tasks import build, estimate
from tasks.remarks import last_remarks, remarks
from vae_lab import VAE
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import Linear

WARMUP = "this run has {} and never reaches its learning rate (lr_warmup_steps=100)"
TEMPERATURE = "this run has {} and ends before the schedule of its temperature, of 2000"
GREY = "there are pixels between 0 and 1: their cross-entropy is no likelihood; type data.bin"
CASES = {
    "network=linear": [],
    "trainer.max_epochs=2": [WARMUP.format("52 steps"), TEMPERATURE.format("52 steps")],
    "trainer.max_epochs=77": [],
    "trainer.max_epochs=76": [TEMPERATURE.format("1976 steps")],
    "model=gaussian_vae trainer.max_epochs=30": ["this run has 780 steps and takes 13% of its"],
    "model=gaussian_vae trainer.max_epochs=39": [],
    "model=gaussian_vae trainer.max_epochs=2 objective=elbo_warmup": [
        WARMUP.format("52 steps"),
        "this run has 52 steps and ends before the schedule of its beta, of 1000",
    ],
    "model=gaussian_vae trainer.max_epochs=-1 trainer.max_steps=1": [WARMUP.format("1 step")],
    "trainer.max_epochs=-1": [],
    "trainer.max_epochs=77 trainer.accumulate_grad_batches=2": [TEMPERATURE.format("1001 steps")],
    "trainer.max_epochs=9 estimator=rebar model.lr_warmup_steps=0": [],  # its own temperature
    "trainer.max_epochs=2 trainer.limit_train_batches=4": [],
    "trainer.max_epochs=2 trainer.limit_train_batches=0.5": [],
    "trainer.max_epochs=2 trainer.overfit_batches=2": [],
    "+trainer.fast_dev_run=true": [],
    "data.batch_size=500 trainer.max_epochs=999": ["an epoch has 3 steps, few for 1300 images"],
    "data.binarize=none": [GREY],
    "data.binarize=none trainer.limit_train_batches=4": [GREY],
    "data.binarize=stochastic": [],
    "data.binarize=none likelihood=continuous_bernoulli": [],
}


def said(line):
    chosen = config("run_dir=x", "logger=csv", *line.split())
    datamodule, model = build.datamodule_and_model(chosen)
    datamodule.setup()
    x = next(iter(datamodule.val_dataloader()))[0]
    trainer = build.trainer(chosen, model, fit=False)
    return [*remarks(chosen, trainer, datamodule, model, x)]


@pytest.mark.parametrize(("line", "expected"), CASES.items(), ids=CASES)
def test_only_what_is_seldom_meant_is_said(line, expected, monkeypatch):
    monkeypatch.setattr(estimate, "LEAST", math.inf)  # how long it takes is this machine's matter
    found = said(line)
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected
    assert all("\n" not in line and "type " in line for line in found)


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("trainer.max_epochs=2", "trainer.max_epochs"),
        ("trainer.max_epochs=-1 trainer.max_steps=60", "trainer.max_steps"),
        ("trainer.max_epochs=9 trainer.max_steps=60", "trainer.max_steps"),
        ("trainer.max_epochs=2 trainer.max_steps=999", "trainer.max_epochs"),
    ],
)
def test_a_longer_run_is_one_with_a_later_end_of_the_kind_that_ends_it(line, end):
    found = [line for line in said(line) if "this run has" in line]
    assert found
    assert all(line.endswith(f"or a larger {end}") for line in found)


def test_what_is_said_to_type_leaves_nothing_to_say():
    line = "data.batch_size=500 trainer.max_epochs=20 objective=elbo_warmup data.binarize=none"
    while found := said(line):
        setting = re.search(r"type ([a-z_.]+=[\w.]+)", found[0]).group(1)
        kept = [part for part in line.split() if part.split("=")[0] != setting.split("=")[0]]
        assert setting not in line
        line = " ".join([*kept, setting])
    assert {"data.batch_size=128", "model.temperature.steps=220", "objective.beta.steps=220"} <= {
        *line.split()
    }


def test_a_run_says_it_once(run, capsys):
    whole = ["trainer.limit_train_batches=null", "trainer.max_epochs=1"]
    run(*CSV, *whole, "data.binarize=none", "model=gaussian_vae", "run_dir=x")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:25] for line in lines[:2]] == [GREY[:25], "this run has 26 steps and"]
    assert sum("this run has" in line for line in lines) == 1
    run("resume=x", "trainer.max_epochs=2")  # which could not be changed any more
    assert "this run has" not in capsys.readouterr().out


@pytest.mark.parametrize(("mean", "poor"), [(0.0, False), (9.0, True)])
def test_poor_samples_are_those_of_posteriors_that_are_far_from_the_prior(mean, poor):
    datamodule = build.make(config().data)
    datamodule.setup()
    vae = VAE(datamodule.shape, Linear(), Gaussian(3), Bernoulli())
    with torch.no_grad():
        vae.head.weight.zero_()
        vae.head.bias.copy_(torch.tensor([mean] * 3 + [0.0] * 3))
    found = [*last_remarks(vae.eval(), datamodule)]
    assert len(found) == poor
    assert not poor or re.match(
        r"poor samples: .* at least 121 nats apart.*model.latents=2", found[0]
    )


@pytest.mark.parametrize("gap", [None, 121.0])
def test_a_run_ends_with_what_its_samples_will_be(run, monkeypatch, capsys, gap):
    if gap is not None:
        monkeypatch.setattr("tasks.remarks.prior_gap", lambda latent, q: gap)
    run(*CSV, "run_dir=x")
    assert capsys.readouterr().out.count("poor samples: ") == (gap is not None)
