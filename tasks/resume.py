"""Finds the run that `resume=` goes on with, and the changes that keep it from going on exactly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from commandline.settings import OLD, Role, names, role_of
from vae_lab import lightning
from vae_lab.storage.checkpoints import CHECKPOINTS, Saved, read_saved, versions

from . import build

RUNS = Path("runs")


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has been saved in a folder, be the file whole or not."""
    return any(versions(folder / CHECKPOINTS / f"{name}.ckpt") for name in ("last", "best"))


def newest_like(config: DictConfig) -> Saved | None:
    """The last saved of the unfinished runs in runs/ with this config; None if there is none."""
    decided = config.copy()
    build.decided_by_data(decided)
    wanted = OmegaConf.to_container(decided, resolve=True)
    saved = [folder for folder in RUNS.glob("*") if has_checkpoint(folder)]
    for folder in sorted(saved, key=lambda f: (f / CHECKPOINTS).stat().st_mtime, reverse=True):
        file = folder / "config.yaml"
        if file.is_file() and not changes(OmegaConf.to_container(OmegaConf.load(file)), wanted):
            found = read_saved(folder, "last")
            if finished(folder, found.content, config) is None:
                return found
    return None


def finished(folder: Path, checkpoint: dict[str, Any], config: DictConfig) -> float | None:
    """The test ELBO of a run that was released at its last step and is to train no longer."""
    release = folder / "release" / "config.json"
    saved = OmegaConf.create(checkpoint["config"])
    ends = names(Role.ENDS)
    same = all(OmegaConf.select(saved, key) == OmegaConf.select(config, key) for key in ends)
    if not same or not release.is_file():
        return None
    facts = json.loads(release.read_text())
    return facts["metrics"]["test/elbo"] if facts.get("step") == checkpoint["global_step"] else None


def changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The settings that differ, among those that make a run what it is: "seed 0 -> 1".

    Groups that the saved config does not know at all are newer than it, and make no difference,
    unless the table of settings has the value of an old run; nor do new settings of `init`, which
    no class has a default of.
    """
    known = {k: config[k] for k in config if k in saved or k in OLD}
    if "init" in known:
        known["init"] = {k: v for k, v in known["init"].items() if k in saved["init"]}
    new = dict(_flat(known))
    old = {key: value for key, value in OLD.items() if key in new} | dict(_flat(saved))
    return [
        f"{key} {_show(old, key)} -> {_show(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if _show(old, key) != _show(new, key) and role_of(key) is Role.MAKES
    ]


def transparency(data: Mapping[str, Any]) -> str | None:
    """A warning for a run that was saved before there was `data.background`, if it is affected."""
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
