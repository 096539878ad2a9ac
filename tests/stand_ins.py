"""The least model, data and Trainer that the callbacks and loggers can be tried on."""

import errno
import os
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vae_lab.likelihoods import Bernoulli
from vae_lab.views import Views


class Batch(NamedTuple):
    x: Tensor
    y: Tensor
    size: int


class TinyVAE(Views):
    condition, likelihood = None, Bernoulli()

    def __init__(self, shape=(1, 8, 8)):
        super().__init__()
        self.shape = shape
        self.image = nn.Parameter(torch.full(shape, 0.5))
        self.dropout = nn.Dropout()

    def reconstruct(self, x):
        return self.dropout(0.5 * x + 0.5 * self.image)

    def sample(self, n):
        return torch.rand(n, *self.shape, device=self.image.device) * self.image

    def interpolate(self, x0, x1, steps, y=None, y1=None):
        weight = torch.linspace(0, 1, steps).view(-1, 1, 1, 1, 1)
        return (1 - weight) * x0 + weight * x1


class Model(pl.LightningModule):
    """Denoises with noise of its own, and reads its metrics after every batch."""

    def __init__(self, shape=(1, 8, 8)):
        super().__init__()
        self.vae = TinyVAE(shape)
        self.latest = {}
        self.batch_terms = None
        self.estimator, self.objective = nn.Module(), nn.Module()
        self.schedules = {}
        self.noise = []  # a number drawn in every validation

    def training_step(self, batch, batch_idx):
        elbo = -(self.vae.reconstruct(batch.x) - torch.randn_like(batch.x)).square().mean()
        self.latest = {"train/elbo": elbo.item(), "train/temperature": 0.5}
        self.batch_terms = torch.stack([*[elbo.detach()] * 4, torch.ones(())])
        return -elbo

    def validation_step(self, batch, batch_idx):
        self.noise.append(torch.rand(()).item())
        self.log("val/elbo", -(self.vae.image - batch.x).square().mean(), batch_size=len(batch.x))

    def test_step(self, batch, batch_idx):
        self.noise.append(torch.rand(()).item())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Batches:
    """A loader; a plain list would be taken for many."""

    def __init__(self, count, shape):
        x = torch.rand(count, 16, *shape, generator=torch.Generator().manual_seed(0))
        self.list = [Batch(images, torch.full((16,), -1), 16) for images in x]

    def __iter__(self):
        return iter(self.list)

    def __len__(self):
        return len(self.list)


def batches(count=4, shape=(1, 8, 8)):
    return Batches(count, shape)


def trainer(callbacks=(), logger=False, progress=False, **kwargs):
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_model_summary=False,
        enable_progress_bar=progress,
        num_sanity_val_steps=kwargs.pop("num_sanity_val_steps", 0),
        log_every_n_steps=1,
        **{"max_epochs": 3, "enable_checkpointing": False, **kwargs},
    )


def no_space(*_):
    """In the place of a function that writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
