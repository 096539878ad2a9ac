"""The rules that no constructor checks, each before the run has begun."""

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from .command_line import as_typed

POSITIVE = (
    "early_stopping",
    "max_skipped",
    "compare.images",
    "evaluate.images",
    "evaluate.samples",
    "evaluate.ais_steps",
    "evaluate.memory_gb",
    "explore.images",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.log_every_n_steps",
    "trainer.check_val_every_n_epoch",
    "trainer.val_check_interval",
    "trainer.num_nodes",
    "trainer.limit_train_batches",
    "trainer.limit_test_batches",
)


def check_ranges(config: DictConfig) -> None:
    """Refuses settings that cannot be meant, before anything is made."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed must be in [0, 2^32), got {config.seed}")
    if config.ema is not None and not 0 <= config.ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {config.ema}")
    if config.threads is not None and config.threads < 1:
        raise ValueError(f"threads must be at least 1, got {config.threads}")
    if config.cuda_graphs and not config.compile:
        raise ValueError("cuda_graphs are made of a compiled step: type compile=true as well")
    _check_sharding(config)
    if config.checkpoint is not None and config.task == "fit":
        raise ValueError(
            "checkpoint is what the other tasks read, as task=evaluate; to go on training, type "
            f"{as_typed('resume', config.checkpoint)}"
        )
    _check_devices(config)
    _check_precision(config)
    _check_counts(config)


def _check_sharding(config: DictConfig) -> None:
    """What FSDP cannot have; it shards no scalars."""
    target = OmegaConf.select(config, "trainer.strategy._target_") or ""
    if not target.endswith("ModelParallelStrategy"):
        return
    if config.ema is not None:
        raise ValueError(
            "ema needs the whole weights in every process: use trainer=ddp or ema=null"
        )
    if any("GradientProbe" in (c or {}).get("_target_", "") for c in config.callbacks.values()):
        raise ValueError(
            "callbacks=gradient_probe needs the whole weights in one process: use trainer=ddp"
        )
    if config.model.likelihood.get("learned"):
        raise ValueError(
            "a learned sigma is one number, which cannot be sharded: use trainer=ddp or "
            "likelihood.learned=false"
        )


def _check_precision(config: DictConfig) -> None:
    half, clip = ("16-mixed", "16", 16), config.trainer.gradient_clip_val
    if config.trainer.precision in half and clip and config.model.optimizer.get("fused"):
        raise ValueError(
            "trainer.gradient_clip_val under float16 needs model.optimizer.fused=false, or type "
            "trainer.precision=bf16-mixed"
        )


def _check_counts(config: DictConfig) -> None:
    for name in ("compare.repeats", "compare.reference_repeats", "compare.evaluations"):
        count = OmegaConf.select(config, name)
        if count is not None and count < 2:
            raise ValueError(f"{name} must be at least 2, got {count}")
    for name in ("compare.estimators", "evaluate.parts"):
        chosen = OmegaConf.select(config, name)
        if chosen is not None and not chosen:
            raise ValueError(f"{name} must name at least one; null: all")
    if config.evaluate.ais_images < 0:
        raise ValueError(
            f"evaluate.ais_images must not be negative, got {config.evaluate.ais_images}"
        )
    for name in POSITIVE:
        value = OmegaConf.select(config, name)
        endless = name.startswith("trainer.max_") and value == -1
        if isinstance(value, int | float) and value <= 0 and not endless:  # or a time, as text
            raise ValueError(f"{name} must be positive, got {value}")


def _check_devices(config: DictConfig) -> None:
    """Whether the machine has the GPUs that are asked for; Lightning's answer is hard to read."""
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
    """Whether there is a batch to train on and to validate with, as often as is asked.

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
