"""How long a training takes, said before it begins."""

import math
import time
from functools import partial

import pytest
import torch
from tiny import Images

from models import GumbelVAE, ReinforceVAE
from tasks.estimate import _spoken, seconds_of_a_step, told
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO


def small(cls=GumbelVAE, **settings):
    return cls(
        shape=Images.shape,
        network=MLP((8,)),
        likelihood=Bernoulli(),
        objective=ELBO(),
        optimizer=partial(torch.optim.Adam, lr=0.02),
        **settings,
    )


def images():
    return Images().images.float() / 255


@pytest.mark.parametrize("settings", [{}, {"baseline": "moving_average"}, {"baseline": "learned"}])
def test_a_step_is_timed_and_nothing_of_the_model_changes(settings):
    model = small(ReinforceVAE, **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    noise = torch.get_rng_state()
    assert seconds_of_a_step(model, images()) > 0
    assert torch.equal(torch.get_rng_state(), noise) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_long_training_is_told_and_a_short_one_is_not(monkeypatch):
    model = small()
    forward = model.objective.forward

    def slow(*arguments):
        time.sleep(0.02)
        return forward(*arguments)

    model.objective.forward = slow
    [line] = told(model, images(), 100_000)
    threads = torch.get_num_threads()
    assert line.endswith(f" ms each on {threads} thread" + "s" * (threads > 1))
    assert ": 100000 batches of 16, " in line and " minutes" in line
    assert not [*told(model, images(), 100)] and not [*told(model, images(), math.inf)]


@pytest.mark.parametrize(
    "seconds, words", [(80, "80 seconds"), (600, "10 minutes"), (9e3, "2.5 hours")]
)
def test_a_time_as_it_is_spoken(seconds, words):
    assert _spoken(seconds) == words
