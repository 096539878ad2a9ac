"""Makes the pieces of a run from its config."""

import os
import platform
import re
import shlex
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    SimpleProfiler,
)
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from commandline.likeness import did_you_mean
from commandline.own import FLAG, without_plus
from commandline.places import CONFIGS, OWN, ROOT
from commandline.refusals import chosen_latent, given_by_data, takes_columns
from commandline.settings import Role, below
from commandline.settings_table import choices
from datamodules.base import DataModule
from models.base import VAEModule
from vae_lab import __version__
from vae_lab.callbacks import (
    Checkpointing,
    EarlyStopping,
    FiniteUpdates,
    LatentUse,
    Progress,
    StepSeed,
)
from vae_lab.description import RELAXATION, describe
from vae_lab.estimators import catalog
from vae_lab.inputs import is_picture
from vae_lab.lightning import ExponentialAveraging, count_epochs_once, shorten_steps
from vae_lab.loggers import CSVLogger
from vae_lab.storage.checkpoints import CHECKPOINTS, run_of
from vae_lab.storage.releases import PREFIXES
from vae_lab.storage.runs import AGAIN, commands_of

from .handing import HandedIO

ASKS = re.compile(r"\$\{\s*[\w.]+\s*:")  # a resolver; without a colon it is another setting


def make(config: DictConfig, **arguments: Any) -> Any:
    """Instantiates a node of the config; a constructor's own complaint comes out unwrapped."""
    try:
        return instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        speaks = isinstance(cause, ValueError | OSError | ImportError | MisconfigurationException)
        kind = "" if speaks else f"{type(cause).__name__}: "
        raise ValueError(f"{kind}{cause}{_place(str(error))}") from cause


def _place(message: str) -> str:
    """The place in the config, as the end of an error line, that a message of Hydra names."""
    key = message.rpartition("full_key: ")[2] if "full_key: " in message else ""
    return f" (in {key.strip()})" if key.strip() else ""


def decided_by_data(config: DictConfig) -> pl.LightningDataModule:
    """The data; what of the config it decides, if nobody else has, is put into the config."""
    datamodule = make(config.data)
    _check_datamodule(datamodule, config.data._target_)
    if "columns" in config.data:
        config.data.columns = datamodule.schema
    if "class_names" in config.data and config.model.condition is not None:
        config.data.class_names = datamodule.label_names  # which may have to list a folder
    if config.likelihood is None:
        own = getattr(datamodule, "own_likelihood", DataModule().own_likelihood)
        config.likelihood = own()
    elif takes_columns(config):
        config.likelihood.columns = config.data.columns
    return datamodule


def _check_datamodule(made: Any, target: str) -> None:
    """Refuses an object of a class of one's own that no run can be trained on."""
    if isinstance(made, torch.utils.data.Dataset):
        raise ValueError(f"{target} is a Dataset: type data=dataset data.dataset._target_={target}")
    if not isinstance(made, pl.LightningDataModule):
        raise ValueError(
            f"{target} must make a LightningDataModule, such as one that derives from "
            f"datamodules.base.DataModule, got {type(made).__name__}"
        )
    if getattr(made, "shape", None) is None:
        raise ValueError(
            f"{target} lacks `shape`, the shape of one datum, such as (1, 28, 28) or (30,)"
        )


def datamodule_and_model(config: DictConfig) -> tuple[pl.LightningDataModule, VAEModule]:
    datamodule = decided_by_data(config)
    of_data = {name: getattr(datamodule, name, None) for name in given_by_data(config)}
    if of_data.get("classes") and (names := getattr(datamodule, "label_names", None)):
        of_data["classes"] = names
    model = make(config.model, **of_data, **chosen_latent(config), **_label_estimator(config))
    if config.channels_last:
        model.vae.to(memory_format=torch.channels_last)
    model.config = kept(config)
    for name, parameter in model.vae.named_parameters():
        if name.startswith(tuple(p for part in config.init.freeze for p in PREFIXES[part])):
            parameter.requires_grad_(False)
    return datamodule, model


def _label_estimator(config: DictConfig) -> dict[str, Any]:
    """What a name, typed for the estimator of a model's labels, adds to its arguments."""
    name = config.model.get("label_estimator")
    if not isinstance(name, str):
        return {}
    if name not in (known := choices("estimator")):
        hint = did_you_mean(name, known)
        raise ValueError(f"unknown model.label_estimator={name}{hint}; known: {', '.join(known)}")
    return {"label_estimator": make(OmegaConf.load(CONFIGS / "estimator" / f"{name}.yaml"))}


def kept(config: DictConfig) -> dict[str, Any]:
    """The config for a checkpoint.

    What refers to other settings still does, so that what is typed later reaches all. What asks
    for something of this process, such as `${oc.env:SEED}`, is answered: the next one has another.
    """
    return _answered(OmegaConf.to_container(config), OmegaConf.to_container(config, resolve=True))


def _answered(written: Any, resolved: Any) -> Any:
    if isinstance(written, dict):
        return {name: _answered(node, resolved[name]) for name, node in written.items()}
    if isinstance(written, list):
        return [_answered(*pair) for pair in zip(written, resolved, strict=True)]
    asks = isinstance(written, str) and ASKS.search(written)
    return resolved if asks else written


def take_parts(config: DictConfig, model: VAEModule) -> list[str]:
    """Starts from parts of other runs; says what was taken."""
    said = []
    for part in PREFIXES:
        source = config.init[part]
        if source is not None:
            report = model.vae.load_pretrained(source, part, strict=config.init.strict)
            said.append(f"{part} from {source}: {report}")
    return said


def trainer(config: DictConfig, model: VAEModule, fit: bool = True) -> pl.Trainer:
    """The Trainer; without loggers and checkpoints where it is only to test."""
    run_dir = Path(config.run_dir)
    torch.set_float32_matmul_precision(config.matmul_precision)
    if not torch.cuda.is_available():
        # Lightning has torch ask the driver each time, and every optimizer step does: 100 us.
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    trainer = make(
        config.trainer,
        profiler=_profiler(config.trainer.profiler, run_dir),
        logger=_loggers(config, run_dir) if fit else False,
        callbacks=[StepSeed(config.seed), *(_callbacks(config, model, run_dir) if fit else [])],
        plugins=[HandedIO(config.save.keep, config.save.failures)],
        default_root_dir=str(run_dir),
        enable_checkpointing=fit,
        enable_progress_bar=fit and config.trainer.enable_progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the datamodules shard every batch themselves
    )
    shorten_steps(trainer)
    count_epochs_once(trainer)
    return trainer


def _profiler(name: str | None, run_dir: Path) -> Profiler | str:
    """Simple and advanced ones write a file: what Lightning says of them is not shown."""
    written = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    if name in written:
        return written[name](dirpath=run_dir, filename="profile")
    return name or NoProfiler()


class NoProfiler(PassThroughProfiler):
    """Lightning's enters a generator for each of some hundred actions of a step: 100 us or more."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        return self._nothing


def _loggers(config: DictConfig, run_dir: Path) -> list[pl.loggers.Logger]:
    chosen = [make(c) for c in config.logger.values() if c is not None]
    return [CSVLogger(run_dir / "metrics.csv"), *chosen]


def _callbacks(config: DictConfig, model: VAEModule, run_dir: Path) -> list[Callback]:
    callbacks: list[Callback] = [
        FiniteUpdates(run_dir / "debug.ckpt", config.on_nonfinite, config.max_skipped),
        LatentUse(),
    ]
    if config.ema is not None:
        callbacks.append(ExponentialAveraging(config.ema))
    if config.early_stopping is not None:
        if model.objective.monitor is None:
            raise ValueError(
                f"early_stopping={config.early_stopping} waits for a better val/elbo, which "
                f"{type(model.objective).__name__} does not look for: leave it out"
            )
        wait = max((s.steps for n, s in model.schedules.items() if n == "beta"), default=0)
        callbacks.append(EarlyStopping(patience=config.early_stopping, wait_steps=wait))
    if config.trainer.enable_progress_bar:
        callbacks.append(Progress())
    callbacks += [make(c) for c in config.callbacks.values() if c is not None]
    times = config.save.every_n_steps, config.save.every_minutes
    return [*callbacks, Checkpointing(run_dir / CHECKPOINTS, *times, model.objective.monitor)]


def facts(config: DictConfig, model: VAEModule) -> dict[str, Any]:
    """The part of a release's card that says where it comes from."""
    estimator = model.estimator
    in_units = not is_picture(model.vae.shape) or config.likelihood.get("standardize")
    limits = {} if in_units else {"range": [0, 1]}
    known = estimator.relaxed and type(estimator) in catalog()
    data = OmegaConf.to_container(config.data, resolve=True)
    places = [name for name, row in below("data").items() if row.role is Role.PLACES]
    settings = {k: v for k, v in data.items() if k not in ("_target_", *places)}
    return {
        "vae_lab": __version__,
        "commit": commit(),
        "versions": versions(),
        "command": " && ".join(commands_of(Path(config.run_dir))),
        "data": {"class": data["_target_"].rpartition(".")[2], **limits} | settings,
        **({RELAXATION: describe(estimator)} if known else {}),
    }


def versions() -> dict[str, str]:
    """The versions, and the number of threads, on which it depends whether a run can be repeated to
    the bit."""
    return {
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
    }


def command(resume: str | None = None, threads: int | None = None) -> str:
    """The command that was typed, in a form to be typed again.

    It names no folder of this run, and the home as `~`. A new run's has the number of threads, on
    which its last bits depend.
    """
    lines = without_plus(HydraConfig.get().overrides.task)
    typed = [line for line in lines if not line.startswith("run_dir=")]
    if resume in (None, "auto"):
        if threads is not None and f"threads={threads}" not in typed:
            typed = [line for line in typed if not line.startswith("threads=")]  # it is null
            typed.append(f"threads={threads}")
    else:
        source = Path(resume)
        if source.is_dir() or run_of(source) is not None:
            typed = [f"resume={AGAIN}" if line.startswith("resume=") else line for line in typed]
        else:  # a file from elsewhere: only the folder is new
            typed.append(f"run_dir={AGAIN}")
    flags = [part for folder in OWN for part in (FLAG, str(folder))]
    return shlex.join(["python", "train.py", *map(_from_home, [*flags, *typed])])


def _from_home(typed: str) -> str:
    home = os.environ.get("HOME", "~")
    return re.sub(rf"(?<==){re.escape(home)}(?=/)", "~", typed)


def commit() -> str | None:
    """The code's commit, with a plus where the checkout differs from it; None where that is not
    known."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    command.append("--exclude=*")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return None
    return answer.stdout.strip() or None
