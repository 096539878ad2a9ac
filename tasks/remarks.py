"""Remarks of a run on its settings and its model, one line each: allowed, but seldom meant."""

import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from models.base import VAEModule
from vae_lab import VAE
from vae_lab.evaluation.decomposition import prior_gap
from vae_lab.evaluation.diagnosis import diagnose, facts, has_grey_pixels
from vae_lab.evaluation.measurement import BATCH
from vae_lab.memory import encode_in_parts, posteriors_at_once

from . import estimate

WARMUP = 10  # a tenth of the run, or less
STEPS = 10  # an epoch, at least
IMAGES = 1000  # of which q(z) is made


def remarks(
    config: DictConfig,
    trainer: pl.Trainer,
    datamodule: pl.LightningDataModule,
    model: VAEModule,
    x: Tensor,
) -> Iterator[str]:
    """Remarks before training, on the settings and on the first validation images x.

    The rate and the schedules stay as they were typed: shortened to the run, they would be others
    when it is resumed with a later end. A run on part of its data is a trial, whose length means
    nothing.
    """
    if has_grey_pixels(model.vae.likelihood, x):
        [grey] = diagnose({"grey": 1.0})
        yield f"{grey.because}; {grey.advice}"
    loader, share = datamodule.train_dataloader(), trainer.limit_train_batches
    if isinstance(share, int) or share < 1:
        return
    if trainer.max_epochs != -1:  # else the run counts in steps, however many make an epoch
        unit = getattr(datamodule, "unit", "images")
        yield from _few_steps(loader, trainer.accumulate_grad_batches, unit)
    steps = run_steps(trainer, len(loader))
    if trainer.strategy.root_device.type == "cpu":  # elsewhere the progress bar knows it at once
        mine = math.ceil(loader.batch_size / trainer.world_size)
        batch = x[torch.arange(mine) % len(x)]
        yield from estimate.told(model, batch, steps * trainer.accumulate_grad_batches)
    if math.isfinite(steps):
        end = "trainer.max_steps" if steps == trainer.max_steps else "trainer.max_epochs"
        yield from _long_warmup(model.lr_warmup_steps, steps, end)
        yield from _long_schedules(config, model, steps, end)


def last_remarks(vae: VAE, datamodule: pl.LightningDataModule) -> Iterator[str]:
    """Remarks on a trained model in evaluation mode, by the posteriors of some training images."""
    if not vae.own_prior or not hasattr(datamodule, "train_examples"):
        return  # of another prior than the latent's own the gap is not known
    x, y = datamodule.train_examples(min(IMAGES, posteriors_at_once(vae)))
    with torch.no_grad():
        q = encode_in_parts(vae.of_data(x, y), x, most=BATCH)
    gap = prior_gap(vae.latent, q)
    for found in diagnose({"prior_gap": gap} | facts(vae)):
        if found.level != "fine":
            yield f"{found.name}: {found.because}; {found.advice}"


def run_steps(trainer: pl.Trainer, batches: int) -> float:
    """Number of optimizer steps in a run with so many batches an epoch; infinite without an end."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    most = math.inf if trainer.max_steps == -1 else trainer.max_steps
    return min(math.ceil(batches / trainer.accumulate_grad_batches) * epochs, most)


def _few_steps(loader: Any, accumulated: int, unit: str) -> Iterator[str]:
    """And the largest power of two that is small enough; of our own loaders, which know it."""
    steps, count = math.ceil(len(loader) / accumulated), getattr(loader, "num_images", 0)
    enough = 2 ** int(math.log2(max(count // (STEPS * accumulated), 1)))
    if steps < STEPS and enough < getattr(loader, "batch_size", 0):
        yield (
            f"an epoch has {_count(steps)}, few for {count} {unit}: type data.batch_size={enough}"
        )


def _long_warmup(warmup: int, steps: float, end: str) -> Iterator[str]:
    if warmup * WARMUP <= steps:
        return
    long = "never reaches" if warmup > steps else f"takes {warmup / steps:.0%} of its time to reach"
    yield (
        f"this run has {_count(steps)} and {long} its learning rate (lr_warmup_steps={warmup}): "
        f"type model.lr_warmup_steps={int(steps // WARMUP)}, or a larger {end}"
    )


def _long_schedules(config: DictConfig, model: VAEModule, steps: float, end: str) -> Iterator[str]:
    tree = OmegaConf.to_container(config)
    for name, schedule in model.schedules.items():
        if schedule.steps > steps:
            typed = next(_keys(tree, name, schedule.steps), name)
            yield (
                f"this run has {_count(steps)} and ends before the schedule of its {name}, of "
                f"{schedule.steps}: type {typed}.steps={int(steps)}, or a larger {end}"
            )


def _keys(node: dict[str, Any], name: str, steps: int, prefix: str = "") -> Iterator[str]:
    """The keys to type before `.steps` for the schedules of that name and length."""
    for key, child in node.items():
        if not isinstance(child, dict):
            continue
        if key == name and child.get("steps") == steps:
            yield f"{prefix}{key}"
        yield from _keys(child, name, steps, f"{prefix}{key}.")


def _count(steps: float) -> str:
    return f"{steps:.0f} step{'s' * (steps != 1)}"
