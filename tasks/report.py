"""The pictures and the report of what was trained: at the end of a run, and as task=report."""

from contextlib import closing
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor

from commandline.quoting import as_typed
from commandline.refusals import check_task, checkpoints_of
from vae_lab import VAE
from vae_lab.callbacks.pictures import send
from vae_lab.drawing import gallery, report
from vae_lab.evaluation.measurement import collect
from vae_lab.storage.runs import metrics_of, read, writable
from vae_lab.storage.sources import first_line

from .names import folder_of
from .trained import Trained, trained

IMAGES = 1000  # of the test split


@rank_zero_only
def write_report(
    config: DictConfig, trainer: pl.Trainer, datamodule: pl.LightningDataModule
) -> None:
    """Draws the run's release and writes its report.

    Training is done already, so whatever fails here is one warning.
    """
    folder = Path(config.run_dir)
    try:
        vae = VAE.from_pretrained(folder / "release").to(trainer.strategy.root_device)
        for name, path in _draw(vae, datamodule, folder, folder).items():
            for logger in trainer.loggers:
                send(logger, f"images/{name}", path, trainer.global_step)
        report.write(folder)
    except Exception as error:
        _warn(folder, error, folder)


def refresh(loaded: Trained) -> None:
    """The report with what has been measured since; its pictures stay."""
    try:
        report.write(loaded.folder, loaded.source, loaded.name, loaded.sha256)
    except Exception as error:
        _warn(loaded.folder, error, loaded.typed)


def _warn(folder: Path, error: Exception, source: str | Path) -> None:
    rank_zero_warn(
        f"no report of {folder}: {first_line(error)}; to try again, type "
        f"python train.py task=report {as_typed('checkpoint', str(source))}"
    )


def run(config: DictConfig) -> Path:
    """The report of `checkpoint`, or of several that are separated by commas, side by side."""
    check_task(config)
    chosen = checkpoints_of(config)
    if len(chosen) > 1:
        writable(Path(config.run_dir))
    runs = []
    for source in chosen:
        loaded = trained(config, source, folder=None if len(chosen) == 1 else folder_of(source))
        folder, model = loaded.folder, loaded.source
        if len(chosen) == 1 or not (folder / "images").is_dir():
            writable(folder)
            loaded.datamodule.prepare_data()
            loaded.datamodule.setup("test")
            _draw(loaded.vae, loaded.datamodule, folder, model)
        if len(chosen) == 1:
            return report.write(folder, model, loaded.name, loaded.sha256)
        runs.append(read(folder, model, loaded.name, loaded.sha256))
    return report.compare(runs, config.run_dir)


def _draw(
    vae: VAE, datamodule: pl.LightningDataModule, folder: Path, model: Path
) -> dict[str, Path]:
    x, y = _test_images(datamodule)
    names = None if datamodule.factor_names else getattr(datamodule, "label_names", None)
    return gallery.draw(vae, x, y, folder / "images", metrics_of(model), label_names=names)


def _test_images(datamodule: pl.LightningDataModule) -> tuple[Tensor, Tensor]:
    """The first images of the test split, as the model meets them, and their labels: where these
    number combinations of factors, the first factor."""
    with closing(datamodule.whole_test()) as loader:
        x, y = collect(loader, IMAGES)
    if datamodule.factor_names:
        y = datamodule.factors(y)[:, 0]
    return x, y
