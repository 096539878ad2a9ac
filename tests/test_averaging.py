"""Averaged weights, and codes that fit them."""

import copy

import pytest
import torch
from tiny import SHAPE, binary_images
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vae_lab import VAE
from vae_lab.averaging import MovingAverage
from vae_lab.conditions import Attributes
from vae_lab.latents import FSQ, LFQ, Codebook, Gaussian, ResidualCodebook
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP
from vae_lab.schedules import Linear

pytestmark = pytest.mark.usefixtures("float64")

DECAY, STEPS = 0.8, 6
BOOK = {"book.codes", "book.usage"}
WHITENING = {"whitening.loc", "whitening.covariance", "whitening.matrix"}
LATENTS = {  # and their buffers that are averaged
    "codes that follow": (lambda: Codebook(2, 4, 3, 0.0, revive=0.5), BOOK),
    "codes by gradient": (lambda: Codebook(2, 4, 3, 0.0, decay=None), {"book.usage"}),
    "drawn codes": (lambda: Codebook(2, 4, 3, Linear(2.0, 1.0, 5)), BOOK),
    "a chain": (
        lambda: ResidualCodebook(1, 2, 4, 3, revive=0.5),
        {f"levels.{level}.{name}" for level in range(2) for name in BOOK},
    ),
    "fsq": (lambda: FSQ((3, 4), 2), WHITENING),
    "lfq": (lambda: LFQ(3), WHITENING),
    "none": (lambda: Gaussian(2), set()),
}


def trained(latent, *averages):
    """A model after each of some steps, which these averages follow."""
    torch.manual_seed(0)
    vae = VAE(SHAPE, MLP((3,)), latent, Bernoulli()).double()
    averages = [make(vae) for make in averages]
    optimizer, states = torch.optim.Adam(vae.parameters(), 0.05), []
    for step in range(STEPS):
        if isinstance(schedule := getattr(latent, "temperature", None), Linear):
            schedule.set_step(step)
        optimizer.zero_grad()
        vae(binary_images(20)).objective.mean().neg().backward()
        optimizer.step()
        for average in averages:
            average.update_parameters(vae)
        states.append(copy.deepcopy({**vae.state_dict(), **dict(vae.named_buffers())}))
    return averages, states


def torchs(vae):
    average = get_ema_multi_avg_fn(DECAY)
    return AveragedModel(vae, multi_avg_fn=average, use_buffers=False)


@pytest.mark.parametrize("name", LATENTS)
def test_what_a_latent_learns_is_averaged_as_weights_are_and_no_other_buffer(name):
    make, learned = LATENTS[name]
    (ours, plain), states = trained(make(), lambda vae: MovingAverage(vae, DECAY), torchs)
    means = ours.module.state_dict() | dict(ours.module.named_buffers())
    for key in means.keys() - {f"latent.{buffer}" for buffer in learned}:
        theirs = plain.module.state_dict() | dict(plain.module.named_buffers())
        assert torch.equal(means[key], theirs[key]), key
    for key in (f"latent.{buffer}" for buffer in learned):
        mean = states[0][key]
        for state in states[1:]:
            mean = DECAY * mean + (1 - DECAY) * state[key]
        torch.testing.assert_close(means[key], mean)
        assert not torch.allclose(mean, states[-1][key]), key


def test_the_units_of_attributes_are_not_averaged():
    vae = VAE(SHAPE, MLP((3,)), Gaussian(2), Bernoulli(), condition=Attributes(2))
    average = MovingAverage(vae, DECAY)
    for scale in (1.0, 2.0):
        vae.condition.scale.fill_(scale)
        average.update_parameters(vae)
    assert (average.module.condition.scale == 2).all()
