"""The settings that a model was trained with, under what is typed now."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from commandline.places import files
from commandline.settings import Role, names
from commandline.settings_table import choices
from vae_lab.storage.checkpoints import Saved


def as_saved(config: DictConfig, checkpoint: Saved, run_dir: Path) -> DictConfig:
    """The config that a checkpoint was trained with, under what is typed now, in `run_dir`."""
    saved = OmegaConf.create(checkpoint.content["config"])
    _add_newer(saved, config)
    typed = _typed()
    if config.task != "fit" and "data" in typed and config.data._target_ == saved.data._target_:
        typed.remove("data")  # named so that data.root can be typed
    # An experiment sets what it likes: with one, all is as it is typed now.
    for key in config if "experiment" in typed else typed:
        if key == "likelihood" and config.likelihood is None:
            continue  # it stays what the data was found to be
        OmegaConf.update(saved, key, OmegaConf.select(config, key), merge=False)
    for name in names(Role.ASKS):
        saved[name] = config[name]
    saved.run_dir = str(run_dir)
    return saved


def _add_newer(saved: DictConfig, config: DictConfig) -> None:
    """Adds the settings that are newer than the checkpoint. What has files to choose from is whole
    as it is: a class has its defaults."""
    for name in config.keys() - saved.keys():
        saved[name] = config[name]
    for name, group in config.items():
        if isinstance(group, DictConfig) and not choices(name):
            for key in group.keys() - saved[name].keys():
                saved[name][key] = group[key]


def data_of_release(config: DictConfig, card: dict[str, Any], source: str) -> DictConfig:
    """The config of a release's data: the settings on its card, under what is typed now.

    Args:
        source: of the release, for messages.

    Raises:
        ValueError: the card and what is typed do not say which data it is, or where it lies.
    """
    typed, about = _typed(), card.get("data") or {}
    known = {
        OmegaConf.load(path)._target_.rpartition(".")[2]: path for path in files("data").values()
    }
    chosen = config.data._target_.rpartition(".")[2]
    if "data" in typed and chosen != about.get("class"):
        return config.data
    if about.get("class") not in known:
        raise ValueError(
            f"{source} does not say which data it was trained on: type data=NAME, one "
            f"of {', '.join(sorted(path.stem for path in known.values()))}"
        )
    path = known[about["class"]]
    # Within the config, as the file refers to settings of its.
    whole = config.copy()
    whole.data = config.data if "data" in typed else OmegaConf.load(path)
    on_card = {name: value for name, value in about.items() if f"data.{name}" not in typed}
    for name, value in on_card.items():
        if name in whole.data:
            whole.data[name] = value
    for key in [key for key in typed if key.startswith("data.")]:
        OmegaConf.update(whole, key, OmegaConf.select(config, key))
    if lacking := [name for name in whole.data if OmegaConf.is_missing(whole.data, name)]:
        place = "FOLDER" if lacking[0] == "root" else "FILE"
        raise ValueError(
            f"{source} does not say where its {'images are' if place == 'FOLDER' else 'data is'}: "
            f"type data={path.stem} data.{lacking[0]}={place}"
        )
    return whole.data


def _typed() -> list[str]:
    """The keys and groups that are set on the command line."""
    return [line.lstrip("+~").partition("=")[0] for line in HydraConfig.get().overrides.task]
