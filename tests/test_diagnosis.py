"""What the doctor says, and whether it can be typed."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from commandline.check import check
from commandline.errors import explain
from models import GumbelVAE
from vae_lab import VAE
from vae_lab.conditions import InferredLabels, Labels
from vae_lab.evaluation.diagnosis import CHECKS, diagnose, facts, own_temperature, sizes
from vae_lab.latents import FSQ, Categorical, Gaussian, HierarchicalGaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP
from vae_lab.schedules import as_schedule

FINE = {
    **{"kl": 12.0, "active_units": 15, "latents": 20, "categories": 10, "code_perplexity": 7.0},
    **{"reconstruction_gain": 300.0, "elbo": -240.0, "train_elbo": -239.0, "train_elbo_error": 1.0},
    **{"dominated": 0.01, "effective_samples": 800.0, "samples": 5000, "relaxed_gap": 1.5},
    **{"temperature": 0.5, "grey": 0.0, "prior_gap": 0.4},
    **{"mixture_gap": 1.5, "mixture_gap_error": 0.4},
}
ILL = {
    "posterior collapse": [{"kl": 0.05}, {"active_units": 0}],
    "inactive units": [{"active_units": 9}],
    "dead codes": [{"code_perplexity": 1.8}, {"code_perplexity": 1.05, "categories": 2}],
    "decoder ignores z": [{"reconstruction_gain": 0.3}],
    "overfitting": [{"train_elbo": -200.0}],
    "importance weights": [{"dominated": 0.3}, {"dominated": 0.3, "ais_gain": 2.5}],
    "relaxed gap": [{"relaxed_gap": 5.0}],
    "poor samples": [{"prior_gap": 8.0}],
    "second stage": [{"mixture_gap": 2.5}, {"mixture_gap_error": 0.1}],
    "temperature": [{"temperature": 0.01}],
    "grey pixels": [{"grey": 1.0}],
}
CASES = [(name, change) for name, changes in ILL.items() for change in changes]
SETTING = re.compile(r"\b[a-z_]+(?:\.[a-z_]+)*=[\w.\[\]-]*[\w\]]")


def found(numbers, **settings):
    return {diagnosis.name: diagnosis for diagnosis in diagnose(numbers, **settings)}


def test_a_healthy_model_has_been_looked_at():
    assert {name: d.level for name, d in found(FINE).items()} == dict.fromkeys(CHECKS, "fine")
    assert all(d.because and not d.advice for d in diagnose(FINE))


@pytest.mark.parametrize(("name", "change"), CASES)
def test_each_illness_is_named_alone_with_its_numbers(name, change):
    diagnoses = found(FINE | change)
    assert [n for n, d in diagnoses.items() if d.level != "fine"] == [name]
    assert next(iter(diagnoses)) == name  # the worst first
    assert diagnoses[name].numbers.items() >= change.items()
    assert "\n" not in diagnoses[name].because + diagnoses[name].advice


def test_what_it_advises_can_be_typed():
    """With the model that has the setting: only of gumbel_vae is the temperature known."""
    typed = set()
    for name, change in CASES:
        unknown = {key: number for key, number in FINE.items() if key != "temperature"}
        for model, healthy in (("gumbel_vae", FINE), ("reinforce_vae", unknown)):
            if model == "reinforce_vae" and name == "temperature":
                continue
            lines = SETTING.findall(found(healthy | change)[name].advice)
            assert lines
            typed |= {(model, line) for line in lines}
    assert len(typed) > 15
    for model, line in typed:
        check([f"model={model}", line])


def test_what_an_evaluation_without_memory_advises_can_be_typed():
    config = OmegaConf.create({"task": "evaluate", "evaluate": {"memory_gb": 1.0}})
    said = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), config)
    assert said.startswith("CUDA out of memory: with evaluate.memory_gb=1 ")
    assert SETTING.findall(said)[1:] == ["evaluate.memory_gb=0.25"]
    check(["task=evaluate", "checkpoint=gumbel_vae-digits", "evaluate.memory_gb=0.25"])


@pytest.mark.parametrize("place", ["runs/ARM", "ARM", "my ARM", "ARM-2/x", "/ARM.old"])
def test_a_folder_that_is_called_as_a_class_keeps_its_name(place):
    config = OmegaConf.create({"task": "fit", "run_dir": place})
    said = f"{place} holds a run already: type run_dir={place}, as {place}.ckpt"
    assert explain(ValueError(said), config) == said
    said = "no folder a/ARM, ARM/b or x=ARM; DisARM, not 'ARM'"
    assert explain(ValueError(said), config) == said.replace("DisARM", "disarm")
    config.run_dir = "x"
    assert explain(ValueError("ARM: use DisARM (in a)."), config) == "arm: use disarm (in a)."
    assert explain(ValueError("use ARM."), config) == "use arm."


def test_what_is_not_known_is_not_looked_at():
    assert found({}) == {}
    assert list(found({"kl": 0.0, "active_units": 0.0, "latents": 5})) == [
        *("posterior collapse", "inactive units")
    ]


def test_thresholds_and_names_are_the_callers():
    diagnosis = found(FINE | {"kl": 0.3}, prefix="val/", min_kl=0.5)["posterior collapse"]
    assert diagnosis.level == "problem"
    assert diagnosis.because == "val/kl is 0.3 nats, 15 of 20 latent variables are active"


def test_collapse_is_worse_than_waste():
    levels = [d.level for d in diagnose(FINE | {"kl": 0.0, "grey": 1.0})]
    assert levels == sorted(levels, key=["problem", "warning", "fine"].index)
    assert levels[:2] == ["problem", "warning"]


def test_sizes():
    assert sizes(Gaussian(3)) == {"latents": 3}
    assert sizes(Categorical(3, 4)) == {"latents": 3, "categories": 4}
    fixed = {"latents": 1, "categories": 8, "fixed": 1, "levels": 2}
    assert sizes(FSQ((2, 4))) == fixed
    assert sizes(HierarchicalGaussian((3, 2))) == {"latents": 5, "closed_kl": 0}


def test_what_is_advised_can_be_typed():
    """Not of a latent that would refuse it, nor where it changes nothing."""
    of_fsq = {"latents": 1, "categories": 64, "fixed": 1, "levels": 2}
    dead = diagnose(of_fsq | {"code_perplexity": 1.5})[0]
    assert "smaller model.levels" in dead.advice and "model.categories" not in dead.advice
    costs = {"kl": 4.0, "reconstruction_gain": 1.0}
    assert diagnose(costs)[0].level == "problem" and diagnose(costs | of_fsq)[0].level == "fine"
    collapsed = {"kl": 0.01, "latents": 5}
    assert "free_bits" in diagnose(collapsed)[0].advice
    assert "free_bits" not in diagnose(collapsed | {"closed_kl": 0})[0].advice
    few = {"dominated": 1.0, "effective_samples": 1.0, "samples": 10.0, "places": 4}
    advice = [diagnose(few | more)[0].advice for more in ({}, {"annealed": 1})]
    assert ["evaluate.ais_images" in line for line in advice] == [False, True]
    far = {"prior_gap": 200.0, "latents": 2}
    advice = [diagnose(far | more)[0].advice for more in ({}, {"conditional": 1})]
    assert ["task=prior" in line for line in advice] == [True, False]
    assert "vae_lab.fit_prior(vae, x, 'autoregressive', y=y)" in advice[1]


@pytest.mark.parametrize("condition", [None, Labels(3), InferredLabels(3)])
def test_the_facts_of_a_model(condition):
    vae = VAE((4,), MLP((3,)), Gaussian(2), Bernoulli(), None, condition)
    known = {"latents": 2, "conditional": 1, "annealed": 1}
    if condition is None or condition.inferred:
        del known["annealed" if condition else "conditional"]
    assert facts(vae) == known
    codes = VAE((4,), MLP((3,)), Categorical(2, 3), Bernoulli())
    assert facts(codes) == sizes(codes.latent)


def test_the_temperature_is_that_which_can_be_typed():
    from test_distributed import make

    model = make(GumbelVAE)
    model.config = {"estimator": None}
    assert own_temperature(model) == {"temperature": 1.0}
    model.config = {"estimator": {"_target_": "vae_lab.estimators.GumbelRao"}}
    assert own_temperature(model) == {}
    assert own_temperature(torch.nn.Linear(1, 1)) == {}
    nearest = torch.nn.Module()
    nearest.temperature = as_schedule(0.0)
    assert own_temperature(nearest) == {}


def test_of_a_grid_it_speaks_of_channels_and_places():
    grid = FINE | {"latents": 8, "places": 144, "active_units": 700, "active_channels": 8}
    assert all(d.level == "fine" for d in diagnose(grid))
    assert "700 of 1152" in found(grid)["posterior collapse"].because
    assert "the places use 7 " in found(grid)["dead codes"].because
    few = found(grid | {"active_channels": 3})["inactive units"]
    assert few.level == "warning" and "type model.latents=3," in few.advice
    weights = found(grid | {"dominated": 1.0, "effective_samples": 1.0})["importance weights"]
    assert weights.level == "warning" and "compare models by elbo" in weights.advice
    samples = found(grid | {"prior_gap": 200.0})["poor samples"]
    assert "model.latents=4" in samples.advice
    single = found(grid | {"latents": 1, "prior_gap": 200.0})["poor samples"]
    assert single.advice.endswith("more images, with objective.beta=4")
    for diagnosis in (few, weights, samples):
        for line in SETTING.findall(diagnosis.advice):
            check(["model=gumbel_vae", line])


def test_the_sizes_of_a_grid_are_those_of_a_place():
    latent = Categorical(3, 4)
    latent.bind((5, 6))
    assert sizes(latent) == {"latents": 3, "categories": 4, "places": 30}
