"""The name of a model that `checkpoint` names, and the folder for the results made with it."""

import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from commandline.own import NO_FILE
from vae_lab.storage.checkpoints import run_of


def names_of(chosen: list[str]) -> list[str]:
    """A name for every source, that a folder can have and no other one has."""
    short = [name_of(source) for source in chosen]
    names: list[str] = []
    for source, name in zip(chosen, short, strict=True):
        own = name if short.count(name) == 1 else _plain(source)
        while own in names:
            own += "-2"
        names.append(own)
    return names


def name_of(source: str) -> str:
    """A short name of a source: of a run its folder's, of another file of it also the file's."""
    kind, _, rest = source.partition(":")
    if kind in ("wandb", "hf"):
        return rest.rpartition("/")[2]
    path = Path(source).expanduser().absolute()
    run = run_of(path)
    if path.suffix == ".safetensors":
        path = path.parent
    if path.name == "release":
        return path.parent.name
    if run is not None:
        return run.name if path.stem == "best" else f"{run.name}-{path.stem}"
    return path.stem if path.is_file() else path.name


def folder_of(source: str) -> Path:
    """The model's own folder, or one in runs/ for a model of the zoo and what was downloaded.

    A run's own is that of its best checkpoint; any other one has a folder beside it.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return Path("runs") / f"evaluate-{_plain(source)}"
    if path.is_dir():
        return path
    if path.suffix == ".safetensors":
        return path.parent
    run = run_of(path)
    return path.with_suffix("") if run is None or path.stem != "best" else run


def data_name(config: DictConfig) -> str:
    """What the data is called in a folder's name: its file, or a class that was typed."""
    chosen = HydraConfig.get().runtime.choices.data
    typed = chosen == NO_FILE.partition("=")[2]
    return config.data._target_.rpartition(".")[2].lower() if typed else chosen


def _plain(source: str) -> str:
    """A source as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", source).strip("-.")
