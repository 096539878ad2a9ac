"""task=fit: trains a new run, or goes on with one; then tests, releases and reports it."""

import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from commandline.errors import lost
from commandline.quoting import as_typed
from commandline.refusals import check_ranges
from models.base import VAEModule
from vae_lab import VAE
from vae_lab.callbacks import Checkpointing
from vae_lab.data import Batch
from vae_lab.description import check_described
from vae_lab.lightning import ended_its_epoch
from vae_lab.loggers import begin, upload_release
from vae_lab.storage import files
from vae_lab.storage.checkpoints import (
    CHECKPOINTS,
    Saved,
    load_saved,
    read_saved,
    save_checkpoint,
    stamp_of,
    versions,
)
from vae_lab.storage.runs import keep_command, lock

from . import build, prior_gain, resume
from .handing import hand
from .machine import check_batches, check_devices, decide_threads
from .remarks import last_remarks, remarks
from .report import write_report
from .show import say, table, tested
from .start import Start, check_free, is_first, start
from .trained import restored


def fit(config: DictConfig) -> float:
    """Trains, tests the best checkpoint, releases it. Returns the test ELBO."""
    with ExitStack() as held:
        begun = start(config, held)
        if config.resume == "auto" and begun.saved is not None:
            elbo = resume.finished(begun.folder, begun.saved.content, config)
            if elbo is not None:
                say(f"{begun.folder} is finished; to go on, raise trainer.max_epochs")
                return elbo
        return train_run(begun.settings(config), begun)


def train_run(config: DictConfig, begun: Start) -> float:
    """Trains anew, or from a checkpoint."""
    check_ranges(config)
    check_devices(config)
    pl.seed_everything(config.seed, verbose=False)
    datamodule, model = _pieces(config, begun.saved)
    trainer = build.trainer(config, model)
    differences = [] if begun.saved is None else _differences(config, trainer, begun.saved)
    content = {} if begun.saved is None else begun.saved.content
    decide_threads(config, content, trainer.world_size > 1)
    said = _check_data(config, trainer, datamodule, model)
    if config.compile:
        model.objective.compile(mode="reduce-overhead" if config.cuda_graphs else None)
    saved = _occupied(config, begun)
    _open(config, trainer)
    path = None if saved is None else _handed(trainer, begun.folder, saved, bool(differences))
    if is_first():
        step = 0 if saved is None else saved.content["global_step"]
        trainer.loggers[0].rewind(step)
        if path is not None:
            say(f"resuming {begun.folder} at step {step} from {path}")
    for line in said if path is None else ():
        say(line)
    with _told_how_to_go_on(trainer):
        return _train(config, trainer, model, datamodule, path)


def _train(
    config: DictConfig,
    trainer: pl.Trainer,
    model: VAEModule,
    datamodule: pl.LightningDataModule,
    path: Path | None,
) -> float:
    """Trains, and makes of it all that a run leaves."""
    began = time.perf_counter()
    trainer.fit(model, datamodule, ckpt_path=path, weights_only=True)
    seconds = time.perf_counter() - began
    best = _best(trainer)
    metrics = _test(trainer, model, datamodule, best)
    _release(config, trainer, best, metrics)
    if config.report:
        write_report(config, trainer, datamodule)
    _summary(config, trainer, datamodule, metrics, seconds)
    if config.model._target_ == "models.SecondStage" and is_first():
        prior_gain.tell(config)
    return metrics["test/elbo"]


def _pieces(config: DictConfig, saved: Saved | None) -> tuple[pl.LightningDataModule, VAEModule]:
    """The data, and the model as it begins."""
    if saved is not None:
        return restored(config, saved)
    datamodule, model = build.datamodule_and_model(config)
    check_described(model.vae)  # one that is trained already needs it for its release only
    for line in build.take_parts(config, model):
        say(line)
    return datamodule, model


def _differences(config: DictConfig, trainer: pl.Trainer, checkpoint: Saved) -> list[str]:
    """The changed settings that keep the run from going on exactly.

    They are refused unless exact=false was typed. An end that the run has passed is always refused.
    """
    saved = checkpoint.content
    found = resume.changes(saved["config"], build.kept(config))
    if line := resume.transparency(saved["config"]["data"]):
        rank_zero_warn(line)
    if (processes := saved.get("processes", 1)) != trainer.world_size:
        found.append(f"processes {processes} -> {trainer.world_size}")
    if config.threads not in (None, before := saved.get("threads", config.threads)):
        found.append(f"threads {before} -> {config.threads}")
    if found and config.exact:
        raise ValueError(
            f"{checkpoint.path} cannot go on exactly with other settings: {', '.join(found)}; "
            "leave them as they were, or type exact=false: they take effect, and an unfinished "
            "epoch begins anew"
        )
    _check_end(config, saved)
    return found


def _check_end(config: DictConfig, saved: dict[str, Any]) -> None:
    """Refuses an end of the run that it has passed already."""
    done = {"epochs": saved["epoch"] + ended_its_epoch(saved), "steps": saved["global_step"]}
    for unit, count in done.items():
        most = config.trainer.get(f"max_{unit}")
        if most is not None and -1 < most < count:
            raise ValueError(
                f"the run has trained for {count} {unit}, more than trainer.max_{unit}={most}: "
                f"type a larger trainer.max_{unit}"
            )


def _occupied(config: DictConfig, begun: Start) -> Saved | None:
    """Locks the run's folder; returns the checkpoint to go on from, read anew if it has changed."""
    saved = begun.saved
    if is_first():
        begun.held.enter_context(lock(begun.folder))
        if saved is None:
            check_free(begun.folder, config.resume)  # by now another may have trained there
        elif not saved.is_current:
            saved = load_saved(saved.path)
    return saved


def _handed(trainer: pl.Trainer, folder: Path, saved: Saved, anew: bool) -> Path:
    """The file that all processes go on with: the run's newest, so that a kill before the next save
    changes nothing. Only the first process has written it, where it was another."""
    if not saved.sealed:
        say(f"{saved.path} is from a version that kept no sha256: it cannot be verified")
    if not anew and saved.is_newest_of(folder):
        return hand(trainer, saved)
    last = folder / CHECKPOINTS / "last.ckpt"
    if is_first():
        content = resume.begin_epoch_anew(saved.content) if anew else saved.content
        save_checkpoint(content, last, len(versions(last)) + 1)
        hand(trainer, Saved(last, content, True, stamp_of(last.stat())))
    return last


@contextmanager
def _told_how_to_go_on(trainer: pl.Trainer) -> Iterator[None]:
    """Says of which run another process was lost."""
    try:
        yield
    except Exception as error:
        if line := lost(error, str(_folder(trainer))):
            raise ValueError(line) from error
        raise


def _folder(trainer: pl.Trainer) -> Path:
    """The run's folder, as its checkpoints have it: the first process has told the others."""
    return next(c for c in trainer.callbacks if isinstance(c, Checkpointing)).folder.parent


def _check_data(
    config: DictConfig,
    trainer: pl.Trainer,
    datamodule: pl.LightningDataModule,
    model: VAEModule,
) -> list[str]:
    """Meets the data, and its range, before there is a run to leave behind; what is to be said."""
    if not is_first():
        return []
    datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.labelled_share = model.labelled_share  # decides how many batches there are
    check_batches(config, datamodule)
    x, y, _ = _first(datamodule.val_dataloader())
    model.vae.likelihood.check(x)
    if model.vae.condition is not None:
        model.vae.given(y), model.vae.given(datamodule.train_labels())
    return [*_guess(datamodule), *remarks(config, trainer, datamodule, model, x)]


def _first(loader: Iterable[Any]) -> Batch:
    """A loader's first batch."""
    batch = next(iter(loader))
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        raise ValueError(
            "a batch of data.val_dataloader() must be a vae_lab.data.Batch of x, y and the number "
            f"of data in all processes, got {type(batch).__name__} of {len(batch)}"
        )
    return Batch(*batch)


def _guess(datamodule: pl.LightningDataModule) -> Iterator[str]:
    """What the data was taken for, and how to say otherwise."""
    if guess := getattr(datamodule, "guess", ""):
        yield "columns by their looks; to change or leave out, type data.columns={A: KIND, B: null}"
        yield textwrap.indent(guess, "    ")


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


def _best(trainer: pl.Trainer) -> Saved:
    best = read_saved(_folder(trainer))
    if best.path.stem != "best":
        say(f"there is no best.ckpt: {best.path} is tested and released")
    return best


def _test(
    trainer: pl.Trainer, model: VAEModule, datamodule: pl.LightningDataModule, best: Saved
) -> dict[str, float]:
    # After fit, the averaging would put the weights that were not averaged in place of the best.
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
    path = hand(trainer, best)
    return tested(trainer, model, datamodule, ckpt_path=path, weights_only=True)


@rank_zero_only
def _release(
    config: DictConfig, trainer: pl.Trainer, best: Saved, metrics: dict[str, float]
) -> None:
    """From the file, as the model at hand may be this process's share of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the run began
        _, model = restored(config, best)
    facts = build.facts(config, model) | {"step": trainer.global_step, "metrics": metrics}
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
    end = "max_epochs" if trainer.max_steps == -1 else "max_steps"  # what it has come to
    say(f"         python train.py {as_typed('resume', run_dir)} trainer.{end}=N")
    say(f'         vae_lab.VAE.from_pretrained("{run_dir}")')
