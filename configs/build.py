"""Makes the pieces of a run from its config."""

import subprocess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.base import VAEModule
from vae_lab.callbacks import EarlyStopping, FiniteLoss, Progress, StepSeed
from vae_lab.loggers import CSVLogger
from vae_lab.runs import PARTS, take_part

POSITIVE = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "log_every_n_steps",
    "limit_train_batches",
    "limit_test_batches",
)


def make(config: DictConfig, **arguments: Any) -> Any:
    """Instantiates a node of the config; a constructor's own complaint comes out unwrapped."""
    try:
        return instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, ValueError | OSError | ImportError | MisconfigurationException):
            raise ValueError(f"{cause}{_place(str(error))}") from None
        raise


def _place(message: str) -> str:
    """Where Hydra says that it was in the config."""
    key = message.rpartition("full_key: ")[2] if "full_key: " in message else ""
    return f" (in {key.strip()})" if key.strip() else ""


def datamodule_and_model(config: DictConfig) -> tuple[pl.LightningDataModule, VAEModule]:
    datamodule = make(config.data)
    model = make(config.model, shape=datamodule.shape)
    model.config = OmegaConf.to_container(config)  # unresolved: what is typed later reaches all
    for name, parameter in model.vae.named_parameters():
        if name.startswith(tuple(p for part in config.init.freeze for p in PARTS[part])):
            parameter.requires_grad_(False)
    return datamodule, model


def take_parts(config: DictConfig, model: VAEModule) -> list[str]:
    """Starts from parts of other runs; says what was taken."""
    said = []
    for part in ("encoder", "decoder"):
        source = config.init[part]
        if source is not None:
            taken = take_part(model.vae, part, source)
            said.append(f"{part} from {source}: {', '.join(taken)}")
    return said


def trainer(config: DictConfig, model: VAEModule, fit: bool = True) -> pl.Trainer:
    """The Trainer; without loggers and checkpoints where it is only to test."""
    run_dir = Path(config.run_dir)
    return make(
        config.trainer,
        logger=_loggers(config, run_dir) if fit else False,
        callbacks=[StepSeed(config.seed), *(_callbacks(config, model, run_dir) if fit else [])],
        default_root_dir=str(run_dir),
        enable_checkpointing=fit,
        enable_progress_bar=fit and config.trainer.enable_progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the datamodules shard every batch themselves
    )


def check_ranges(config: DictConfig) -> None:
    """The rules that no constructor checks."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed must be in [0, 2^32), got {config.seed}")
    if config.ema is not None and not 0 <= config.ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {config.ema}")
    if config.ema is not None and not isinstance(config.trainer.strategy, str):
        raise ValueError(
            "ema needs the whole weights in every process: use trainer=ddp or ema=null"
        )
    if config.checkpoint is not None and config.task == "fit":
        raise ValueError(
            f"checkpoint is what task=test and task=sample read; to go on training, type "
            f"resume={config.checkpoint}"
        )
    if config.early_stopping is not None and config.early_stopping < 1:
        raise ValueError(f"early_stopping must be at least 1, got {config.early_stopping}")
    for name in POSITIVE:
        value = config.trainer.get(name)
        endless = name.startswith("max_") and value == -1
        if value is not None and value <= 0 and not endless:
            raise ValueError(f"trainer.{name} must be positive, got {value}")


def _loggers(config: DictConfig, run_dir: Path) -> list[pl.loggers.Logger]:
    chosen = [make(c) for c in config.logger.values() if c is not None]
    return [CSVLogger(run_dir / "metrics.csv"), *chosen]


def _callbacks(config: DictConfig, model: VAEModule, run_dir: Path) -> list[Callback]:
    callbacks: list[Callback] = [FiniteLoss()]
    if config.ema is not None:
        average = get_ema_multi_avg_fn(config.ema)
        callbacks.append(WeightAveraging(use_buffers=False, multi_avg_fn=average))
    if config.early_stopping is not None:
        wait = max((s.steps for n, s in model.schedules.items() if n == "beta"), default=0)
        callbacks.append(EarlyStopping(patience=config.early_stopping, wait_steps=wait))
    if config.trainer.enable_progress_bar:
        callbacks.append(Progress())
    callbacks += [make(c) for c in config.callbacks.values() if c is not None]
    return callbacks + _checkpoints(run_dir / "checkpoints")


def _checkpoints(folder: Path) -> list[Callback]:
    always = {"dirpath": folder, "save_top_k": 1, "enable_version_counter": False}
    return [
        # Best by the true ELBO: beta = 1 and exact samples, whatever training maximises.
        ModelCheckpoint(
            filename="best",
            monitor="val/elbo",
            mode="max",
            save_on_train_epoch_end=False,
            **always,
        ),
        LastCheckpoint(
            filename="last", save_on_train_epoch_end=True, save_on_exception=True, **always
        ),
    ]


class LastCheckpoint(ModelCheckpoint):
    """Also saves where a run is cut short, unless with bad weights or while others wait for it."""

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        good = all(p.isfinite().all() for p in pl_module.parameters())
        if trainer.world_size == 1 and good:
            super().on_exception(trainer, pl_module, exception)


def commit() -> str | None:
    """The code's commit, with a plus where the checkout differs from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    answer = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
