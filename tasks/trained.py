"""A trained model and the data that it was trained on, from whatever `checkpoint` names."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from commandline.refusals import checkpoint_of
from models.base import VAEModule
from vae_lab import VAE, pretrained
from vae_lab.estimators import Estimator
from vae_lab.storage import sources
from vae_lab.storage.checkpoints import Saved, read_saved, run_of
from vae_lab.storage.runs import writable
from vae_lab.storage.sources import is_release

from . import build, resume
from .as_trained import as_saved, data_of_release
from .names import folder_of, name_of


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, with all that the tasks need to know of it.

    Attributes:
        typed: the source as it was typed.
        name: to show, and to name files by.
        source: the folder of the run or of the release.
        folder: where what is made of the model is written; it may not exist yet.
        config: the settings that it was trained with, under what is typed now; of a release only
            those that are typed now.
        vae: the model.
        datamodule: of the data that the model was trained on; call `prepare_data` and `setup`.
        model: the training module with its estimator and objective, as they were at the
            checkpoint's step; None for a release, which has neither.
    """

    typed: str
    name: str
    source: Path
    folder: Path
    config: DictConfig
    vae: VAE
    datamodule: pl.LightningDataModule
    model: VAEModule | None

    @cached_property
    def card(self) -> dict[str, Any]:
        """The release's description of itself; empty for a checkpoint without a release."""
        there = any(map(is_release, (self.source, self.source / "release")))
        return pretrained.card(self.source) if there else {}

    @cached_property
    def estimator(self) -> Estimator | None:
        """The training estimator at the checkpoint's step. A release keeps it only if it is a
        relaxation."""
        return pretrained.relaxation(self.card) if self.model is None else self.model.estimator

    @cached_property
    def sha256(self) -> str:
        """The digest of the weights, as their release has it or would have it."""
        return self.card["sha256"] if self.model is None else pretrained.digest(self.vae)


def trained(
    config: DictConfig,
    typed: str | None = None,
    name: str | None = None,
    folder: Path | None = None,
) -> Trained:
    """Loads a model, in evaluation mode, onto the device of `trainer.accelerator`.

    The settings, of the data above all, are those that the model was trained with, under what is
    typed now.

    Args:
        typed: a run's or a release's folder, a `.ckpt` or `.safetensors` file, a model of the zoo,
            `wandb:...` or `hf:...`; None: `checkpoint`.
        name: None: :func:`~tasks.names.name_of` what is typed.
        folder: None: `run_dir`, or else the model's own; see :func:`~tasks.names.folder_of`.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is damaged, its data is not known, or the data has another shape.
    """
    typed = checkpoint_of(config) if typed is None else typed
    path = sources.resolve(typed)
    folder = _run_dir(config) if folder is None else folder
    load = _from_run if _is_run(path) else _from_release
    found = load(config, path, typed, name or name_of(typed), folder)
    _check_shape(found)
    (found.model or found.vae).eval()
    on_device(config, found.vae)
    return found


def load_run(config: DictConfig) -> Trained:
    """The run that `checkpoint` names, or a file of it: as it is trained, and where the trainer
    has not put it yet."""
    typed = checkpoint_of(config)
    return _from_run(config, Path(typed), typed, name_of(typed), _run_dir(config))


def load_vae(config: DictConfig) -> tuple[VAE, Path]:
    """The model of any source, and the folder for what is made of it, which can be written in."""
    vae = VAE.from_pretrained(checkpoint_of(config))
    source = Path(config.checkpoint)
    if config.run_dir is None and not source.exists():
        raise ValueError(f"{source} is no folder here: type run_dir=FOLDER, where to write")
    folder = Path(config.run_dir or (source if source.is_dir() else source.parent))
    writable(folder)
    return vae, folder


def restored(config: DictConfig, saved: Saved) -> tuple[pl.LightningDataModule, VAEModule]:
    """The data, and the model with the weights of a checkpoint."""
    datamodule, model = build.datamodule_and_model(config)
    try:
        model.load_state_dict(saved.content["state_dict"])
    except RuntimeError as error:
        first = "; ".join(line.strip(" \t.") for line in str(error).splitlines()[1:6])
        differences = resume.changes(saved.content["config"], build.kept(config))
        raise ValueError(
            f"{saved.path} holds another model ({', '.join(differences) or 'of other code'}): "
            f"{first}; to start from its parts that fit, type init.encoder={saved.path} "
            "init.strict=false"
        ) from None
    model.set_step(saved.content["global_step"])
    return datamodule, model


def data_of_run(config: DictConfig, path: Path) -> DictConfig | None:
    """The config of the data that a run was trained on, under what is typed; None for a release."""
    if not _is_run(path):
        return None
    saved = read_saved(path)
    data: DictConfig = as_saved(config, saved, path).data
    return data


def _is_run(path: Path) -> bool:
    """Whether a path has a checkpoint of train.py, and not only a release."""
    return path.suffix != ".safetensors" if path.is_file() else resume.has_checkpoint(path)


def _run_dir(config: DictConfig) -> Path | None:
    return None if config.run_dir is None else Path(config.run_dir)


def _from_run(
    config: DictConfig, path: Path, typed: str, name: str, folder: Path | None
) -> Trained:
    saved = read_saved(path)
    own = run_of(saved.path) or saved.path.parent
    config = as_saved(config, saved, own if folder is None else folder)
    datamodule, model = restored(config, saved)
    source = path if path.is_dir() else own
    folder = folder or folder_of(typed)
    return Trained(typed, name, source, folder, config, model.vae, datamodule, model)


def _from_release(
    config: DictConfig, path: Path, typed: str, name: str, folder: Path | None
) -> Trained:
    vae = VAE.from_pretrained(path)
    data = data_of_release(config, pretrained.card(path), typed)
    if "columns" in data and (known := getattr(vae.likelihood, "columns", None)):
        data.columns = known  # a guess from other data might be another
    datamodule = build.make(data)
    source = path if path.is_dir() else path.parent
    folder = folder or folder_of(typed)
    return Trained(typed, name, source, folder, config, vae, datamodule, None)


def _check_shape(found: Trained) -> None:
    shape = tuple(found.datamodule.shape)
    if shape != found.vae.shape:
        raise ValueError(
            f"{found.typed} is a model of data of shape {found.vae.shape}, and "
            f"{type(found.datamodule).__name__} has {shape}: leave out data=..., or choose the "
            "data that it was trained on"
        )


def on_device(config: DictConfig, vae: VAE) -> VAE:
    """The model, on the device of `trainer.accelerator`."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    on_cpu = here is None or config.trainer.accelerator == "cpu"
    return vae.to(torch.device("cpu") if on_cpu else here)
