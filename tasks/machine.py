"""Checks and choices before a run begins that depend on the machine or on the data."""

import os
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from vae_lab import threads

from .show import say


def check_devices(config: DictConfig) -> None:
    """Refuses to ask for GPUs that the machine does not have; Lightning's error is hard to read."""
    accelerator, devices = config.trainer.accelerator, config.trainer.devices
    present = torch.accelerator.device_count()
    if accelerator in ("gpu", "cuda", "mps") and present == 0:
        raise ValueError(
            f"trainer.accelerator={accelerator}, but there is no GPU: type trainer=cpu"
        )
    if accelerator != "cpu" and isinstance(devices, int) and devices > present > 0:
        raise ValueError(
            f"trainer.devices={devices}, but the machine has {present}: type trainer.devices="
            f"{present}, or trainer.accelerator=cpu for processes on the CPU"
        )


def check_batches(config: DictConfig, datamodule: pl.LightningDataModule) -> None:
    """Refuses limits that leave no batch to train on, to validate or to test with.

    Lightning finds out when the run has begun.
    """
    counts = {
        "train": len(datamodule.train_dataloader()),
        "val": len(datamodule.val_dataloader()),
        "test": len(datamodule.test_dataloader()),
    }
    for split, count in counts.items():
        limit = config.trainer[f"limit_{split}_batches"]
        if isinstance(limit, float) and 0 < limit * count < 1:
            raise ValueError(
                f"trainer.limit_{split}_batches={limit:g} of {count} batches is none: type a count "
                "or a larger fraction"
            )
    _check_interval(config, _limited(counts["train"], config.trainer.limit_train_batches))


def _limited(count: int, limit: int | float | None) -> int:
    if limit is None:
        return count
    return int(limit * count) if isinstance(limit, float) else min(limit, count)


def _check_interval(config: DictConfig, batches: int) -> None:
    every, epochs = config.trainer.val_check_interval, config.trainer.check_val_every_n_epoch
    if isinstance(every, int) and every > batches and epochs is not None:
        raise ValueError(
            f"trainer.val_check_interval={every} is more than the {batches} training batches of an "
            "epoch: type less, or trainer.check_val_every_n_epoch=null to count over epochs"
        )


def decide_threads(config: DictConfig, saved: dict[str, Any], several: bool) -> None:
    """Sets the number of threads, once for the whole run: a sum's last bits depend on it.

    Several processes have what was typed, what the run began with, or else what Lightning gives
    each; it leaves alone what the environment says.
    """
    usual, number = torch.get_num_threads(), config.threads or saved.get("threads")
    if number is None and not saved and not several:
        others = threads.others()
        number = threads.suited(others)
        if number < usual:
            say(f"threads  {number}: others use {others:.1f} cores; threads={usual} takes all")
    if number is not None:
        threads.use(number)
        config.threads = number
        if several:
            os.environ["OMP_NUM_THREADS"] = str(number)
