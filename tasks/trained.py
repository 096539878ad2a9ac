"""A trained model and the data that it was trained on, from whatever `checkpoint` names."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from commandline.places import CONFIGS
from commandline.refusals import checkpoint_of
from commandline.settings_table import choices
from models.base import VAEModule
from vae_lab import VAE, pretrained
from vae_lab.estimators import Estimator
from vae_lab.storage import sources
from vae_lab.storage.checkpoints import find_checkpoint, load_checkpoint, run_of
from vae_lab.storage.runs import writable
from vae_lab.storage.sources import is_release

from . import build, resume

DATA = CONFIGS / "data"
NOW = ("task", "checkpoint", "resume", "exact", "evaluate", "compare", "explore")  # not as it was


class Trained(NamedTuple):
    """What is there to work with after training.

    Attributes:
        vae: in evaluation mode, on the device of `trainer.accelerator`.
        datamodule: of the data that the model was trained on; call `prepare_data` and `setup`.
        model: the training module with its estimator and objective, as they were at the
            checkpoint's step, in evaluation mode; None for a release, which has neither.
        name: to show, and to name files by.
        source: the folder of the run or of the release.
        folder: where what is made of the model is written; it may not exist yet.
        facts: the card of the release; empty for a checkpoint without one.
    """

    vae: VAE
    datamodule: pl.LightningDataModule
    model: VAEModule | None
    name: str
    source: Path
    folder: Path
    facts: dict[str, Any]

    @property
    def estimator(self) -> Estimator | None:
        """That of the training at the checkpoint's step; of a release only one that relaxes."""
        return pretrained.relaxation(self.facts) if self.model is None else self.model.estimator

    @property
    def sha256(self) -> str:
        """Of the weights, as their release has it or would have it."""
        return self.facts["sha256"] if self.model is None else pretrained.digest(self.vae)


def trained(config: DictConfig) -> Trained:
    """Loads `checkpoint`: a run's or a release's folder, a `.ckpt` or `.safetensors` file, a model
    of the zoo, `wandb:...` or `hf:...`.

    The settings, of the data above all, are those that the model was trained with, under what is
    typed now.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is damaged, its data is not known, or the data has another shape.
    """
    path = sources.resolve(checkpoint_of(config))
    if _is_run(path):
        loaded = _from_run(config, path)
    else:
        vae, facts = VAE.from_pretrained(path), pretrained.card(path)
        datamodule = build.make(_data(config, facts))
        source = path if path.is_dir() else path.parent
        loaded = Trained(vae, datamodule, None, "", source, source, facts)
    _check_shape(config, loaded)
    loaded.vae.to(_device(config))
    name = name_of(config.checkpoint)
    return loaded._replace(name=name, folder=_folder(config, path))


def load_run(config: DictConfig) -> tuple[DictConfig, pl.LightningDataModule, VAEModule]:
    """The config, data and model of a checkpoint of train.py."""
    path = find_checkpoint(checkpoint_of(config))
    config = as_saved(config, path)
    return config, *restored(config, path)


def load_vae(config: DictConfig) -> tuple[VAE, Path]:
    """The model of any source, and the folder for what is made of it, which can be written in."""
    vae = VAE.from_pretrained(checkpoint_of(config))
    source = Path(config.checkpoint)
    if config.run_dir is None and not source.exists():
        raise ValueError(f"{source} is no folder here: type run_dir=FOLDER, where to write")
    folder = Path(config.run_dir or (source if source.is_dir() else source.parent))
    writable(folder)
    return vae, folder


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


def restored(config: DictConfig, path: Path) -> tuple[pl.LightningDataModule, VAEModule]:
    """The data, and the model with the weights of the checkpoint at `path`."""
    datamodule, model = build.datamodule_and_model(config)
    saved = load_checkpoint(path)
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        first = "; ".join(line.strip(" \t.") for line in str(error).splitlines()[1:6])
        differences = resume.changes(saved["config"], build.kept(config))
        raise ValueError(
            f"{path} holds another model ({', '.join(differences) or 'of other code'}): {first}; "
            f"to start from its parts that fit, type init.encoder={path} init.strict=false"
        ) from None
    model.set_step(saved["global_step"])
    return datamodule, model


def as_saved(config: DictConfig, checkpoint: Path) -> DictConfig:
    """The config that a checkpoint was trained with, under what is typed now."""
    saved = OmegaConf.create(load_checkpoint(checkpoint)["config"])
    _add_newer(saved, config)
    typed = _typed()
    if config.task != "fit" and "data" in typed and config.data._target_ == saved.data._target_:
        typed.remove("data")  # named so that data.root can be typed
    # An experiment sets what it likes: with one, all is as it is typed now.
    for key in config if "experiment" in typed else typed:
        OmegaConf.update(saved, key, OmegaConf.select(config, key), merge=False)
    for name in NOW:
        saved[name] = config[name]
    saved.run_dir = config.run_dir or str(run_of(checkpoint) or checkpoint.parent)
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


def _typed() -> list[str]:
    """The keys and groups that are set on the command line."""
    return [line.lstrip("+~").partition("=")[0] for line in HydraConfig.get().overrides.task]


def _is_run(path: Path) -> bool:
    """Is there a checkpoint of train.py, and not only a release."""
    return path.suffix != ".safetensors" if path.is_file() else resume.has_checkpoint(path)


def _from_run(config: DictConfig, path: Path) -> Trained:
    saved = config.copy()
    saved.checkpoint = str(path)
    _, datamodule, model = load_run(saved)
    run = path if path.is_dir() else run_of(path) or path.parent
    facts = pretrained.card(run) if is_release(run / "release") else {}
    model.eval()
    return Trained(model.vae, datamodule, model, "", run, run, facts)


def _data(config: DictConfig, facts: dict[str, Any]) -> DictConfig:
    """The config of a release's data: its card's settings, under what is typed now."""
    typed, about = _typed(), facts.get("data") or {}
    files = {OmegaConf.load(path)._target_.rpartition(".")[2]: path for path in DATA.glob("*.yaml")}
    chosen = config.data._target_.rpartition(".")[2]
    if "data" in typed and chosen != about.get("class"):
        return config.data
    if about.get("class") not in files:
        raise ValueError(
            f"{config.checkpoint} does not say which data it was trained on: type data=NAME, one "
            f"of {', '.join(sorted(path.stem for path in files.values()))}"
        )
    path = files[about["class"]]
    # Within the config, as the file refers to settings of its.
    whole = config.copy()
    whole.data = config.data if "data" in typed else OmegaConf.load(path)
    card = {name: value for name, value in about.items() if f"data.{name}" not in typed}
    for name, value in card.items():
        if name in whole.data:
            whole.data[name] = value
    for key in [key for key in typed if key.startswith("data.")]:
        OmegaConf.update(whole, key, OmegaConf.select(config, key))
    if OmegaConf.is_missing(whole.data, "root"):
        raise ValueError(
            f"{config.checkpoint} does not say where its images are: type data={path.stem} "
            "data.root=FOLDER"
        )
    return whole.data


def _check_shape(config: DictConfig, loaded: Trained) -> None:
    shape = tuple(loaded.datamodule.shape)
    if shape != loaded.vae.shape:
        raise ValueError(
            f"{config.checkpoint} is a model of images of shape {loaded.vae.shape} (C, H, W), and "
            f"{type(loaded.datamodule).__name__} has {shape}: leave out data=..., or choose the "
            "data that it was trained on"
        )


def _device(config: DictConfig) -> torch.device:
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if here is None or config.trainer.accelerator == "cpu" else here


def _plain(source: str) -> str:
    """A source as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", source).strip("-.")


def _folder(config: DictConfig, path: Path) -> Path:
    """`run_dir`, or the model's own folder, which the zoo's and what was downloaded do not have.

    A run's own is that of its best checkpoint; any other one has a folder beside it.
    """
    if config.run_dir is not None:
        return Path(config.run_dir)
    if not Path(config.checkpoint).expanduser().exists():
        return Path("runs") / f"evaluate-{_plain(config.checkpoint)}"
    if path.is_dir():
        return path
    if path.suffix == ".safetensors":
        return path.parent
    run = run_of(path)
    return path.with_suffix("") if run is None or path.stem != "best" else run
