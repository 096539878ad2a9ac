"""Pictures while the model trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchvision.transforms.functional import pil_to_tensor

from ..drawing.kinds import figures_of
from ..gradients import evaluating
from ..seeding import seed_generators
from .training import Training


class Pictures(pl.Callback):
    """Writes reconstructions, prior samples and interpolations as PNGs, also to the loggers: images
    as they are, series and the columns of tables as plots.

    Drawn in validation, of the weights that it measures, and at the end of training, always from
    the same seed and from the first data of the first validation batch, so that pictures are
    comparable over epochs. The files are overwritten; W&B and TensorBoard keep them all, as
    `images/<name>`. Training does not notice: the generators and the modules' modes are put back.

    Only the first process draws, without communication. A model whose parameters are sharded over
    processes cannot be run by one of them, so none is drawn.

    Args:
        folder: Where the PNGs go.
        every_n_epochs: Epochs between pictures; None: only at the end of training.
        images: Images in a row, at most: fewer of large ones, so that a row can be looked at.
        seed: Of the noise in the pictures; has no influence on training.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_epochs: int | None = 1,
        images: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be positive or None, got {every_n_epochs}")
        if images < 1:
            raise ValueError(f"images must be positive, got {images}")
        self.folder = Path(folder)
        self.every_n_epochs = every_n_epochs
        self.images = images
        self.seed = seed
        self._seen: tuple[Tensor, Tensor] | None = None
        self._drawn_at = -1  # optimizer step of the pictures on disk

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not batch_idx == dataloader_idx == 0:
            return
        most = figures_of(batch[0].shape[1:]).most or self.images
        x, y = (part[:most].clone() for part in batch[:2])  # no views of all of it
        self._seen = x, y  # on the device already, as the model sees it
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        n = self.every_n_epochs
        if fitting and n is not None and (trainer.current_epoch + 1) % n == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        drawn = self._drawn_at == trainer.global_step
        sharded = any(isinstance(p, DTensor) for p in pl_module.parameters())
        vae = cast(Training, pl_module).vae
        if drawn or sharded or not trainer.is_global_zero:
            return
        self._drawn_at = trainer.global_step
        x, y = self._seen or (torch.zeros(0, *vae.shape), torch.zeros(0))  # without a validation
        with evaluating(pl_module), forked_generators(pl_module.device), torch.no_grad():
            seed_generators(self.seed)
            try:
                paths = figures_of(vae.shape).draw(vae, x, y, self.folder, self.images)
            except OSError as error:  # of a full disk: training goes on
                rank_zero_warn(f"no pictures of step {trainer.global_step}: {error.strerror}")
                return
        for path in paths:
            for logger in trainer.loggers:
                send(logger, f"images/{path.stem}", path, trainer.global_step)


@contextmanager
def forked_generators(device: torch.device) -> Iterator[None]:
    """Generators of the CPU and of the device that are afterwards where they were."""
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices, device_type=device.type):
        yield


def send(logger: pl.loggers.Logger, key: str, path: Path, step: int) -> None:
    """Gives a PNG to a logger that keeps pictures."""
    if isinstance(logger, pl.loggers.TensorBoardLogger):
        with Image.open(path) as image:
            logger.experiment.add_image(key, pil_to_tensor(image.convert("RGB")), step)
    elif hasattr(logger, "log_image"):
        # The file, because W&B stretches a tensor's values to the whole range.
        logger.log_image(key, [str(path)], step)
