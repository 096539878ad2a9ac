"""What train.py can be asked to do: fit, test, sample, compare."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Column, Table

from models.base import VAEModule
from vae_lab import __version__, pictures
from vae_lab.runs import default_folder, find_checkpoint, load_checkpoint

from . import build

say = rank_zero_only(print)


def fit(config: DictConfig) -> float:
    """Trains, tests the best checkpoint, releases it. Returns the test ELBO."""
    checkpoint = None
    if config.resume is not None:
        checkpoint = find_checkpoint(config.resume, ("last",))
        config = _as_saved(config, checkpoint)
        config.run_dir = str(checkpoint.parent.parent)
    else:
        config.run_dir = str(_new_folder(config))
    build.check_ranges(config)
    pl.seed_everything(config.seed, verbose=False)
    if checkpoint is not None:
        datamodule, model = _trained(config, checkpoint)
    else:
        datamodule, model = build.datamodule_and_model(config)
        for line in build.take_parts(config, model):
            say(line)
    trainer = build.trainer(config, model)
    _check_data(datamodule, model)
    if config.compile:
        model.objective.compile()
    _open(config, trainer)
    if checkpoint is not None:
        say(f"resuming {config.run_dir} from {checkpoint}")
        trainer.loggers[0].rewind(load_checkpoint(checkpoint)["global_step"])

    began = time.perf_counter()
    trainer.fit(model, datamodule, ckpt_path=checkpoint, weights_only=True)
    seconds = time.perf_counter() - began
    metrics = _test_best(trainer, model, datamodule)
    _release(config, metrics)
    _summary(config, trainer, metrics, seconds)
    return metrics["test/elbo"]


def test(config: DictConfig) -> float:
    """The test metrics of a run's best checkpoint. Returns the test ELBO."""
    config, datamodule, model = _load(config)
    trainer = build.trainer(config, model, fit=False)
    metrics = _tested(trainer, model, datamodule)
    _table(f"{config.checkpoint}, test split", metrics)
    return metrics["test/elbo"]


def sample(config: DictConfig) -> None:
    """A grid of draws from the prior, as a PNG in `run_dir` or else the run's folder."""
    folder = config.run_dir
    config, _, model = _load(config)
    source = Path(config.checkpoint)
    path = Path(folder or (source if source.is_dir() else source.parent)) / "samples.png"
    torch.manual_seed(config.seed)
    pictures.save(pictures.samples(model.vae.eval(), 8, 8), path)
    say(f"samples: {path}")


def compare(config: DictConfig) -> None:
    """Bias, variance and cost of several estimators' gradients; see :mod:`configs.compare`."""
    from . import compare

    if config.run_dir is None:
        choices = HydraConfig.get().runtime.choices
        config.run_dir = str(default_folder(f"compare-{choices.model}", choices.data))
    model = None
    if config.checkpoint is not None:
        config, _, model = _load(config)
    compare.run(config, fit, model)


TASKS = {"fit": fit, "test": test, "sample": sample, "compare": compare}


def _load(config: DictConfig) -> tuple[DictConfig, pl.LightningDataModule, VAEModule]:
    """The config, data and trained model of `checkpoint`."""
    if config.checkpoint is None:
        raise ValueError(f"task={config.task} needs a trained model: type checkpoint=runs/NAME")
    path = find_checkpoint(config.checkpoint)
    config = _as_saved(config, path)
    return config, *_trained(config, path)


def _trained(config: DictConfig, path: Path) -> tuple[pl.LightningDataModule, VAEModule]:
    datamodule, model = build.datamodule_and_model(config)
    saved = load_checkpoint(path)
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1:6]
        raise ValueError(f"{path} holds another model: {' '.join(map(str.strip, first))}") from None
    model.set_step(saved["global_step"])
    return datamodule, model


def _as_saved(config: DictConfig, checkpoint: Path) -> DictConfig:
    """The config that a checkpoint was trained with, under what is typed now."""
    saved = OmegaConf.create(load_checkpoint(checkpoint)["config"])
    for line in HydraConfig.get().overrides.task:
        key = line.lstrip("+~").partition("=")[0]
        if key == "experiment":
            continue  # its settings are those of the run
        OmegaConf.update(saved, key, OmegaConf.select(config, key), merge=False)
    saved.task, saved.checkpoint, saved.resume = config.task, config.checkpoint, config.resume
    saved.run_dir = config.run_dir or str(checkpoint.parent.parent)
    return saved


def _new_folder(config: DictConfig) -> Path:
    """`run_dir`, in a sweep a folder of the job in it; a name of its own where none was typed."""
    hydra = HydraConfig.get()
    if config.run_dir is None:
        return default_folder(hydra.runtime.choices.model, hydra.runtime.choices.data)
    folder = Path(config.run_dir)
    if hydra.mode == RunMode.MULTIRUN:
        folder /= str(hydra.job.num)
    held = any((folder / name).exists() for name in ("metrics.csv", "checkpoints"))
    if held and _is_first():
        raise ValueError(f"{folder} holds a run already: type resume={folder} or another run_dir")
    return folder


def _check_data(datamodule: pl.LightningDataModule, model: VAEModule) -> None:
    """Meets the data, and its range, before there is a run to leave behind."""
    if _is_first():
        datamodule.prepare_data()
        datamodule.setup("fit")
        model.vae.likelihood.check(next(iter(datamodule.val_dataloader()))[0])


def _is_first() -> bool:
    """Is this the process that writes; known before there is a process group."""
    return rank_zero_only.rank == 0


@rank_zero_only
def _open(config: DictConfig, trainer: pl.Trainer) -> None:
    run_dir = Path(config.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    except OSError as error:
        raise ValueError(f"run_dir must be a folder to write in, got {error}") from None
    hyperparameters = OmegaConf.to_container(config, resolve=True) | {"commit": build.commit()}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            (run_dir / "wandb-id.txt").write_text(f"{logger.version}\n")
        logger.log_hyperparams(hyperparameters)


def _test_best(
    trainer: pl.Trainer, model: VAEModule, datamodule: pl.LightningDataModule
) -> dict[str, float]:
    # After fit, the averaging would put the weights that were not averaged in place of the best.
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
    # The other processes started later, and may have thought of another folder.
    run_dir = trainer.strategy.broadcast(trainer.default_root_dir)
    best = find_checkpoint(run_dir)
    return _tested(trainer, model, datamodule, ckpt_path=best, weights_only=True)


def _tested(trainer: pl.Trainer, *arguments: Any, **options: Any) -> dict[str, float]:
    trainer.test(*arguments, verbose=False, **options)
    metrics = trainer.callback_metrics.items()
    return {name: value.item() for name, value in metrics if name.startswith("test/")}


@rank_zero_only
def _release(config: DictConfig, metrics: dict[str, float]) -> None:
    """From the file, as the model at hand may be this process's share of it."""
    _, model = _trained(config, find_checkpoint(config.run_dir))
    facts = {"vae_lab": __version__, "commit": build.commit(), "metrics": metrics}
    model.vae.save_pretrained(Path(config.run_dir) / "release", **facts)


@rank_zero_only
def _summary(
    config: DictConfig, trainer: pl.Trainer, metrics: dict[str, float], seconds: float
) -> None:
    model, data = (node._target_.rpartition(".")[2] for node in (config.model, config.data))
    _table(f"{model} on {data}: {trainer.global_step} steps in {seconds:.0f} s", metrics)
    run_dir = config.run_dir
    say(f"files    {run_dir}: metrics.csv, images/, checkpoints/, release/")
    say(f"next     python train.py task=sample checkpoint={run_dir}")
    say(f"         python train.py resume={run_dir} trainer.max_epochs=N")
    say(f'         vae_lab.VAE.from_pretrained("{run_dir}")')


@rank_zero_only
def _table(title: str, metrics: dict[str, float]) -> None:
    say(title)
    table = Table("metric", Column("value", justify="right"))
    for name, value in metrics.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)
