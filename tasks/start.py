"""The start of a run: its folder, and the checkpoint that it goes on from."""

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from commandline.quoting import as_typed
from vae_lab.storage.checkpoints import CHECKPOINTS, Saved, read_saved, run_of, saved_at
from vae_lab.storage.runs import default_folder

from . import resume
from .as_trained import as_saved
from .names import data_name
from .show import say


class Start(NamedTuple):
    """The folder of a run, and the checkpoint that it goes on from.

    Attributes:
        folder: of the run; where it was not typed, only the first process knows it.
        saved: the checkpoint that the run goes on from; None for a new one.
        held: what is given back at the end of the run, such as the lock of its folder.
    """

    folder: Path
    saved: Saved | None
    held: ExitStack

    def settings(self, config: DictConfig) -> DictConfig:
        """The config of the run, from what was typed."""
        if self.saved is not None:
            return as_saved(config, self.saved, self.folder)
        config = config.copy()
        config.run_dir = str(self.folder)
        return config


def start(config: DictConfig, held: ExitStack) -> Start:
    """Finds the place of a new run, or the checkpoint of one to go on with, which it reads.

    Raises:
        FileNotFoundError, ValueError: there is no such run, or another one where it is to begin.
    """
    if config.resume == "auto" and config.run_dir is None:
        if (saved := resume.newest_like(config)) is not None:
            return Start(saved.path.parent.parent, saved, held)
        say("resume=auto: no unfinished run with these settings in runs/, a new one begins")
    elif (source := _source(config)) is not None:
        saved_at(source, "last")  # that there is none is said before anything else
        return Start(_folder(config, source), read_saved(source, "last"), held)
    return Start(_new_folder(config, held), None, held)


def _source(config: DictConfig) -> Path | None:
    """The run or the file to go on with; None for a new run."""
    if config.resume != "auto":
        return None if config.resume is None else Path(config.resume)
    folder = typed_folder(config)
    if not resume.has_checkpoint(folder):
        say(f"resume=auto: no checkpoint in {folder}, a new run begins")
        return None
    return folder


def _folder(config: DictConfig, source: Path) -> Path:
    """The run's folder: that of the checkpoint, or, for a file from elsewhere, what is typed."""
    own = run_of(source) if source.is_file() else source
    typed = None if config.run_dir is None else typed_folder(config)
    if typed is not None and own is not None and typed.absolute() != own.absolute():
        raise ValueError(f"resume={source} goes on in {own}: leave out run_dir={config.run_dir}")
    folder = own or typed
    if folder is None:
        raise ValueError(f"{source} is not in a run's folder: type run_dir=... for the run")
    return folder


def typed_folder(config: DictConfig) -> Path:
    """`run_dir`, in a sweep a folder of the job in it."""
    hydra, folder = HydraConfig.get(), Path(config.run_dir)
    return folder / str(hydra.job.num) if hydra.mode == RunMode.MULTIRUN else folder


def _new_folder(config: DictConfig, held: ExitStack) -> Path:
    """The folder that was typed, or one with a name of its own, which the first process makes."""
    if config.run_dir is None:
        choices = HydraConfig.get().runtime.choices
        folder = default_folder(choices.model, data_name(config))
        return held.enter_context(folder) if is_first() else Path("runs/NAME")
    folder = typed_folder(config)
    if is_first():
        check_free(folder, config.resume)
    return folder


def check_free(folder: Path, asked: str | None) -> None:
    """Refuses a folder that holds a run; with resume=auto, one that there is to go on with."""
    found = any((folder / name).exists() for name in ("metrics.csv", CHECKPOINTS))
    if resume.has_checkpoint(folder) if asked == "auto" else found:
        again = as_typed("resume", str(folder))
        raise ValueError(f"{folder} holds a run already: type {again} or another run_dir")


def is_first() -> bool:
    """Whether this is the process that writes; known before there is a process group."""
    return rank_zero_only.rank == 0
