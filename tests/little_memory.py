"""Trains on a folder of pictures in little memory; all of them do not fit.

Prints, in MB: the decoded pictures, the memory allowed beyond that of a run of one batch, what the
processes use at the end of the first and of the second epoch; and what came of reading all at once.
"""

import logging
import multiprocessing
import os
import resource
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules.image_folder import ImageFolder

MB = 1e6
COUNT, SIZE, LIMIT = 1600, 256, 30


class Mean(pl.LightningModule):
    """Learns the mean pixel, and notes the memory of all processes at each epoch's end."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(1))
        self.used = []

    def training_step(self, batch, _):
        return (batch.x.mean() - self.mean).square().sum()

    def on_train_epoch_end(self):
        processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        # Not the libraries' pages: how many other processes share them changes all the time.
        kinds = ("Pss_Anon", "Pss_Shmem")
        used = (kilobytes(f"{pid}/smaps_rollup", kind) for pid in processes for kind in kinds)
        self.used.append(sum(used) / 1e3)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def kilobytes(file, name):
    lines = Path("/proc", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def write(folder):
    """Many names for a few files; what counts is what they take when they are decoded."""
    for number in range(COUNT):
        path = folder / f"{number:04}.ppm"
        if number < 8:
            Image.new("RGB", (SIZE, SIZE), (20 * number, 90, 3)).save(path)
        else:
            path.hardlink_to(folder / f"{number % 8:04}.ppm")


def fit(folder, memory_gb=0.0, **limits):
    data = ImageFolder(
        root=folder,
        image_size=SIZE,
        batch_size=8,
        eval_batch_size=8,
        num_workers=2,
        memory_gb=memory_gb,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **limits,
    )
    model = Mean()
    trainer.fit(model, data)
    return model.used


def main(folder):
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    write(folder)
    fit(folder, max_steps=1, limit_val_batches=1)
    allowed = kilobytes("self/status", "VmData") * 1024 + int(LIMIT * MB)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))  # also of those that read
    first, second = fit(folder, max_epochs=2)
    try:
        fit(folder, memory_gb=1.0, max_epochs=1)
        refused = "fits"
    except (MemoryError, RuntimeError) as error:
        refused = "refused" if "memory" in str(error) else repr(error)
    print(COUNT * 3 * SIZE**2 / MB, LIMIT, first, second, refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
