"""What `resume=` goes on with, and whether it goes on exactly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae_lab import lightning
from vae_lab.storage.checkpoints import FOLDER, find_checkpoint, load_checkpoint, versions

RUNS = Path("runs")

# Settings that may change: training goes on exactly, or takes what is typed as its new end.
FREE = (
    *("task", "run_dir", "checkpoint", "resume", "exact", "save", "compare", "logger", "callbacks"),
    *("evaluate", "explore", "report", "early_stopping", "on_nonfinite", "max_skipped"),
    "threads",  # as many as there were; fit.py compares them
    *("data.root", "data.download", "data.eval_batch_size"),
    *("data.cache_dir", "data.memory_gb", "data.num_workers"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    *("trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.num_sanity_val_steps"),
    *("trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.profiler"),
    *("trainer.detect_anomaly", "trainer.strategy.timeout"),
)
# What those settings were whose checkpoints are older than they.
NEWER = {"data.background": "white", "data.value_range": None}
LIMITS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "early_stopping")


def has_checkpoint(folder: Path) -> bool:
    """Has a run been saved there, whole or not."""
    return any(versions(folder / FOLDER / f"{name}.ckpt") for name in ("last", "best"))


def newest_like(config: DictConfig) -> Path | None:
    """The run in runs/ that has this config, was saved last, and is not finished."""
    wanted = OmegaConf.to_container(config, resolve=True)
    saved = [folder for folder in RUNS.glob("*") if has_checkpoint(folder)]
    for folder in sorted(saved, key=lambda f: (f / FOLDER).stat().st_mtime, reverse=True):
        file = folder / "config.yaml"
        if file.is_file() and not changes(OmegaConf.to_container(OmegaConf.load(file)), wanted):
            checkpoint = load_checkpoint(find_checkpoint(folder, "last"))
            if finished(folder, checkpoint, config) is None:
                return folder
    return None


def finished(folder: Path, checkpoint: dict[str, Any], config: DictConfig) -> float | None:
    """The test ELBO of a run that was released at its last step and is to train no longer."""
    release = folder / "release" / "config.json"
    saved = OmegaConf.create(checkpoint["config"])
    same = all(OmegaConf.select(saved, key) == OmegaConf.select(config, key) for key in LIMITS)
    if not same or not release.is_file():
        return None
    facts = json.loads(release.read_text())
    return facts["metrics"]["test/elbo"] if facts.get("step") == checkpoint["global_step"] else None


def changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The settings, among those that are not `FREE`, that differ: "seed 0 -> 1".

    Groups that the saved config does not know at all are newer than it, and make no difference;
    nor do new settings of `init`, which no class has a default of.
    """
    known = {k: config[k] for k in config if k in saved}
    if "init" in known:
        known["init"] = {k: v for k, v in known["init"].items() if k in saved["init"]}
    new = dict(_flat(known))
    old = {key: NEWER[key] for key in NEWER if key in new} | dict(_flat(saved))
    return [
        f"{key} {_show(old, key)} -> {_show(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if _show(old, key) != _show(new, key)
        and not any(f"{key}.".startswith(f"{free}.") for free in FREE)
    ]


def transparency(data: Mapping[str, Any]) -> str | None:
    """What has changed since for a run whose saved settings do not know `data.background`."""
    if "background" in data or not str(data.get("_target_")).endswith(".ImageFolder"):
        return None
    return (
        "this run is from before data.background: where its pictures are transparent, their pixels "
        "are now laid over white and not as they were"
    )


def _flat(node: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _show(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "absent"


def begin_epoch_anew(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint at the start of its epoch: other batches leave no place to go on from."""
    lightning.begin_epoch_anew(checkpoint)
    for state in checkpoint.values():
        if isinstance(state, dict) and "position" in state:  # the datamodule's
            epoch, done, complete = state["position"]
            state["position"] = [epoch, done if complete else 0, complete]
    checkpoint["window"]["terms"] = None
    return checkpoint
