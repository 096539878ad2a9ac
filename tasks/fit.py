"""task=fit: trains a new run, or goes on with one; then tests, releases and reports it."""

import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from commandline.quoting import as_typed
from commandline.refusals import check_ranges
from models.base import VAEModule
from vae_lab import VAE
from vae_lab.description import check_described
from vae_lab.lightning import ended_its_epoch
from vae_lab.loggers import begin, upload_release
from vae_lab.storage import files
from vae_lab.storage.checkpoints import (
    FOLDER,
    find_checkpoint,
    load_checkpoint,
    run_of,
    save_checkpoint,
    verify,
    versions,
)
from vae_lab.storage.runs import default_folder, keep_command, lock

from . import build, resume
from .machine import check_batches, check_devices, decide_threads
from .remarks import last_remarks, remarks
from .report import write_report
from .show import say, table, tested
from .trained import as_saved, restored


def fit(config: DictConfig) -> float:
    """Trains, tests the best checkpoint, releases it. Returns the test ELBO."""
    source = _source(config)
    with ExitStack() as held:
        if source is None:
            config.run_dir = str(_new_folder(config, held))
            return _fit(config, None, held)
        path = find_checkpoint(source, "last")
        config.run_dir = str(_folder(config, source))
        if config.resume == "auto":
            elbo = resume.finished(Path(config.run_dir), load_checkpoint(path), config)
            if elbo is not None:
                say(f"{config.run_dir} is finished; to go on, raise trainer.max_epochs")
                return elbo
        return _fit(as_saved(config, path), path, held)


def _fit(config: DictConfig, path: Path | None, held: ExitStack) -> float:
    """Trains anew, or from the checkpoint at `path`."""
    check_ranges(config)
    check_devices(config)
    pl.seed_everything(config.seed, verbose=False)
    if path is not None:
        datamodule, model = restored(config, path)
    else:
        datamodule, model = build.datamodule_and_model(config)
        check_described(model.vae)  # one that is trained already needs it for its release only
        for line in build.take_parts(config, model):
            say(line)
    trainer = build.trainer(config, model)
    saved = {} if path is None else load_checkpoint(path)
    differences = [] if path is None else _differences(config, trainer, path, saved)
    decide_threads(config, saved, trainer.world_size > 1)
    said = _check_data(config, trainer, datamodule, model)
    if config.compile:
        model.objective.compile(mode="reduce-overhead" if config.cuda_graphs else None)
    if _is_first():
        held.enter_context(lock(Path(config.run_dir)))
        if path is None:
            _check_free(config, Path(config.run_dir))  # by now another may have trained there
    _open(config, trainer)
    if path is not None:
        if not verify(path):
            say(f"{path} is from a version that kept no sha256: it cannot be verified")
        path = _as_the_newest(config, path, anew=bool(differences))
    if _is_first():
        step = 0 if path is None else load_checkpoint(path)["global_step"]
        trainer.loggers[0].rewind(step)
        if path is not None:
            say(f"resuming {config.run_dir} at step {step} from {path}")
    for line in said if path is None else ():
        say(line)
    trainer.callbacks.append(_SameFolder(config))

    began = time.perf_counter()
    trainer.fit(model, datamodule, ckpt_path=path, weights_only=True)
    seconds = time.perf_counter() - began
    metrics = _test_best(config, trainer, model, datamodule)
    _release(config, trainer, metrics)
    if config.report:
        write_report(config, trainer, datamodule)
    _summary(config, trainer, datamodule, metrics, seconds)
    return metrics["test/elbo"]


def _source(config: DictConfig) -> Path | None:
    """The run or the file to go on with; None for a new run."""
    if config.resume != "auto":
        return None if config.resume is None else Path(config.resume)
    if config.run_dir is None:
        folder = resume.newest_like(config)
        if folder is None:
            say("resume=auto: no unfinished run with these settings in runs/, a new one begins")
        return folder
    folder = _typed_folder(config)
    if not resume.has_checkpoint(folder):
        say(f"resume=auto: no checkpoint in {folder}, a new run begins")
        return None
    return folder


def _folder(config: DictConfig, source: Path) -> Path:
    """The run's folder: that of the checkpoint, or, for a file from elsewhere, what is typed."""
    own = run_of(source) if source.is_file() else source
    typed = None if config.run_dir is None else _typed_folder(config)
    if typed is not None and own is not None and typed.absolute() != own.absolute():
        raise ValueError(f"resume={source} goes on in {own}: leave out run_dir={config.run_dir}")
    folder = own or typed
    if folder is None:
        raise ValueError(f"{source} is not in a run's folder: type run_dir=... for the run")
    return folder


def _differences(
    config: DictConfig, trainer: pl.Trainer, path: Path, saved: dict[str, Any]
) -> list[str]:
    """What keeps the run from going on exactly; refused unless that was asked for. An end that it
    has passed is always refused."""
    found = resume.changes(saved["config"], build.kept(config))
    if line := resume.transparency(saved["config"]["data"]):
        rank_zero_warn(line)
    if (processes := saved.get("processes", 1)) != trainer.world_size:
        found.append(f"processes {processes} -> {trainer.world_size}")
    if config.threads not in (None, before := saved.get("threads", config.threads)):
        found.append(f"threads {before} -> {config.threads}")
    if found and config.exact:
        raise ValueError(
            f"{path} cannot go on exactly with other settings: {', '.join(found)}; leave them as "
            "they were, or type exact=false: they take effect, and an unfinished epoch begins anew"
        )
    _check_end(config, saved)
    return found


def _check_end(config: DictConfig, saved: dict[str, Any]) -> None:
    """Whether the run is asked to end before where it is."""
    done, most = saved["epoch"] + ended_its_epoch(saved), config.trainer.max_epochs
    if most is not None and -1 < most < done:
        raise ValueError(
            f"the run has trained for {done} epochs, more than trainer.max_epochs={most}: type "
            "a larger trainer.max_epochs"
        )


def _as_the_newest(config: DictConfig, path: Path, anew: bool) -> Path:
    """The file that all processes go on with: the run's newest, so that a kill before the next save
    changes nothing. Only the first process has written it, where it was another."""
    last = Path(config.run_dir) / FOLDER / "last.ckpt"
    saved = versions(last)
    if not anew and saved and path.samefile(find_checkpoint(config.run_dir, "last")):
        return path
    if _is_first():
        checkpoint = load_checkpoint(path)
        if anew:
            checkpoint = resume.begin_epoch_anew(checkpoint)
        save_checkpoint(checkpoint, last, len(saved) + 1)
    return last


def _typed_folder(config: DictConfig) -> Path:
    """`run_dir`, in a sweep a folder of the job in it."""
    hydra, folder = HydraConfig.get(), Path(config.run_dir)
    return folder / str(hydra.job.num) if hydra.mode == RunMode.MULTIRUN else folder


def _new_folder(config: DictConfig, held: ExitStack) -> Path:
    """The folder that was typed, or one with a name of its own, which the first process makes."""
    if config.run_dir is None:
        choices = HydraConfig.get().runtime.choices
        folder = default_folder(choices.model, choices.data)
        return held.enter_context(folder) if _is_first() else Path("runs/NAME")
    folder = _typed_folder(config)
    if _is_first():
        _check_free(config, folder)
    return folder


def _check_free(config: DictConfig, folder: Path) -> None:
    """Refuses a folder that holds a run; with resume=auto, one that there is to go on with."""
    found = any((folder / name).exists() for name in ("metrics.csv", FOLDER))
    if resume.has_checkpoint(folder) if config.resume == "auto" else found:
        again = as_typed("resume", str(folder))
        raise ValueError(f"{folder} holds a run already: type {again} or another run_dir")


def _check_data(
    config: DictConfig,
    trainer: pl.Trainer,
    datamodule: pl.LightningDataModule,
    model: VAEModule,
) -> list[str]:
    """Meets the data, and its range, before there is a run to leave behind; what is to be said."""
    if not _is_first():
        return []
    datamodule.prepare_data()
    datamodule.setup("fit")
    check_batches(config, datamodule)
    x = next(iter(datamodule.val_dataloader()))[0]
    model.vae.likelihood.check(x)
    return [*remarks(config, trainer, datamodule, model, x)]


def _is_first() -> bool:
    """Is this the process that writes; known before there is a process group."""
    return rank_zero_only.rank == 0


@rank_zero_only
def _open(config: DictConfig, trainer: pl.Trainer) -> None:
    run_dir = Path(config.run_dir)
    files.write(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    keep_command(run_dir, build.command(config.resume, config.threads))
    hyperparameters = OmegaConf.to_container(config, resolve=True) | {"commit": build.commit()}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            begin(logger)
            (run_dir / "wandb-id.txt").write_text(f"{logger.version}\n")
        logger.log_hyperparams(hyperparameters)


class _SameFolder(pl.Callback):
    """The first process's: the others do not know it where it was not typed."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.config.run_dir = trainer.strategy.broadcast(self.config.run_dir)


def _test_best(
    config: DictConfig,
    trainer: pl.Trainer,
    model: VAEModule,
    datamodule: pl.LightningDataModule,
) -> dict[str, float]:
    # After fit, the averaging would put the weights that were not averaged in place of the best.
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
    best = find_checkpoint(config.run_dir)
    if best.stem != "best":
        say(f"there is no best.ckpt: {best} is tested and released")
    return tested(trainer, model, datamodule, ckpt_path=best, weights_only=True)


@rank_zero_only
def _release(config: DictConfig, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    """From the file, as the model at hand may be this process's share of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the run began
        _, model = restored(config, find_checkpoint(config.run_dir))
    facts = build.card(config, model) | {"step": trainer.global_step, "metrics": metrics}
    release = model.vae.save_pretrained(Path(config.run_dir) / "release", **facts)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            say(upload_release(logger, release))


@rank_zero_only
def _summary(
    config: DictConfig,
    trainer: pl.Trainer,
    datamodule: pl.LightningDataModule,
    metrics: dict[str, float],
    seconds: float,
) -> None:
    model, data = (node._target_.rpartition(".")[2] for node in (config.model, config.data))
    table(f"{model} on {data}: {trainer.global_step} steps in {seconds:.0f} s", metrics)
    run_dir = config.run_dir
    vae = VAE.from_pretrained(Path(run_dir) / "release").to(trainer.strategy.root_device)
    for line in last_remarks(vae, datamodule):
        say(line)
    names = ["report.html", "metrics.csv", "images/", "checkpoints/", "release/"]
    there = ", ".join(name for name in names if (Path(run_dir) / name).exists())
    say(f"files    {run_dir}: {there}")
    say(f"next     python train.py task=evaluate {as_typed('checkpoint', run_dir)}")
    say(f"         python train.py task=explore {as_typed('checkpoint', run_dir)}")
    say(f"         python train.py {as_typed('resume', run_dir)} trainer.max_epochs=N")
    say(f'         vae_lab.VAE.from_pretrained("{run_dir}")')
