"""Relaxed samples are drawn in float32, whatever precision the networks run in."""

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from test_configs import FILES

from vae_lab.latents import Bernoulli, Categorical

ESTIMATORS = {path.stem: OmegaConf.load(path) for path in FILES if path.parent.name == "estimator"}
RELAXED = {
    name: config
    for name, config in ESTIMATORS.items()
    if get_class(config._target_).needs_differentiable or "temperature" in str(config)
}
LATENTS = {"categorical": Categorical(3, 4), "bits": Bernoulli(3)}


def build(name, **settings):
    config = OmegaConf.to_container(RELAXED[name])
    return get_class(config.pop("_target_"))(**config | settings)


def points(name, latent, precision=None):
    """Where f is evaluated, and the gradient that reaches the logits."""
    torch.manual_seed(0)
    logits = torch.randn(5, latent.parameter_size, requires_grad=True)
    seen = []

    def f(z):
        seen.append(z.detach())
        return z.square().flatten(2).sum(-1)

    with torch.autocast("cpu", precision, enabled=precision is not None):
        value = build(name)(latent.distribution(logits), f, context=torch.ones(5, 2))
    value.sum().backward()
    return seen, logits.grad


PAIRS = [
    (name, kind)
    for name, config in RELAXED.items()
    for kind, latent in LATENTS.items()
    if get_class(config._target_).accepts(latent.prior())
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_points_are_those_of_float32(name, kind):
    whole, _ = points(name, LATENTS[kind])
    for precision in (torch.bfloat16, torch.float16):
        half, gradient = points(name, LATENTS[kind], precision)
        assert all(z.dtype == torch.float32 for z in half)
        assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))
        assert gradient.isfinite().all()


TEMPERATURES = [
    (name, setting)
    for name, config in RELAXED.items()
    for setting, value in config.items()
    if "temperature" in setting and value is not None
]


@pytest.mark.parametrize(("name", "setting"), TEMPERATURES)
def test_no_temperature_is_refused(name, setting):
    for value in (0.0, -0.5):
        with pytest.raises(ValueError, match=f"{setting} must be positive, got {value:g}"):
            build(name, **{setting: value})


@pytest.mark.parametrize(("name", "setting"), TEMPERATURES)
def test_a_low_temperature_is_warned_of(name, setting):
    with pytest.warns(UserWarning, match=f"{setting} 0.04 is below 0.05"):
        build(name, **{setting: 0.04})
