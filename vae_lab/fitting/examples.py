"""What is trained on: an array, a frame or a data set, as batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import Pixels, Prepare, TensorLoader
from ..data.splits import check_size, split_rows
from ..inputs import Shape
from ..likelihoods import Bernoulli, Gaussian, Likelihood
from ..seeding import derive_seed
from ..vae import VAE

EVAL_BATCH_SIZE = 512
SPLIT_SEED = 0  # not the run's: several seeds are compared on the same held-out data
GRID_MEAN_OF = 1000  # images: a grid starts at one number a channel, not at one a pixel


class Examples(NamedTuple):
    """Data of one shape in memory.

    Attributes:
        stored: [N, *X], bytes of pictures or floats.
        labels: [N] int64, -1 where there are none.
        prepare: makes of `stored` what the model takes.
    """

    stored: Tensor
    labels: Tensor
    prepare: Prepare

    def subset(self, rows: Tensor | slice) -> "Examples":
        """Those of these rows."""
        return self._replace(stored=self.stored[rows], labels=self.labels[rows])

    @property
    def shape(self) -> Shape:
        return tuple(self.stored.shape[1:])

    @property
    def likelihood(self) -> Likelihood:
        """The one for data of this kind."""
        return Bernoulli() if isinstance(self.prepare, Pixels) else Gaussian(0.1, learned=True)

    def start(self, vae: VAE) -> None:
        """Lets the model learn the units of these data, and starts its decoder at their mean."""
        if not isinstance(self.prepare, Pixels):
            vae.initialize(self.stored)
            return
        stored = self.stored
        if vae.latent.grid:
            stored = stored[:: -(-len(stored) // GRID_MEAN_OF)]
        vae.initialize_bias(self.prepare.mean(stored.split(EVAL_BATCH_SIZE)))

    def loader(self, stage: str, batch_size: int, seed: int, device: torch.device) -> TensorLoader:
        settings = {"stage": stage, "seed": seed, "shuffle": stage == "train"}
        return TensorLoader(
            self.stored, self.labels, batch_size, prepare=self.prepare, device=device, **settings
        )


def examples(x: Any, y: Any = None) -> Examples:
    """What the caller has, in memory.

    Args:
        x: numbers, an array or a tensor [N, *X]; or a data set of torch's, of x or of (x, y).
        y: labels [N], integers.
    """
    if isinstance(x, Dataset):
        x, y = _read(x, y)
    stored = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(_numbers(x))
    if stored.ndim < 2 or not stored.numel():
        raise ValueError(f"x must have the shape [N, *X], N data of one shape, got {[*x.shape]}")
    labels = torch.full((len(stored),), -1) if y is None else torch.as_tensor(y).long().cpu()
    if labels.shape != stored.shape[:1]:
        raise ValueError(f"y must have the shape [{len(stored)}], as x has, got {[*labels.shape]}")
    if stored.dtype == torch.uint8 and stored.ndim == 4:
        if int(stored.max()) <= 1:
            raise ValueError(
                "x has bytes of 0 and 1 only, and pictures have 0 to 255: pass 255 * x if it is "
                "black and white, or x as floats if these are numbers"
            )
        return Examples(stored, labels, Pixels())
    return Examples(stored.float(), labels, Prepare())


def held_out(data: Examples, size: float) -> tuple[Examples, Examples | None]:
    """The data to train on, and a random part to validate on: so many, or such a fraction."""
    if not size:
        return data, None
    check_size("val_size", size)
    val, train = split_rows(len(data.stored), size, derive_seed(SPLIT_SEED, "val"))
    if not len(val) or not len(train):
        raise ValueError(
            f"val_size={size:g} of {len(data.stored)} data leaves {len(train)} to train on and "
            f"{len(val)} to validate on: each needs 1 at least, or type val_size=0"
        )
    return data.subset(train), data.subset(val)


def _numbers(x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"x must be an array or a tensor of numbers, got {type(x).__name__}")
    return np.array(array, order="C", copy=True)


def _read(data: "Dataset[Any]", y: Any) -> tuple[Tensor, Any]:
    """All data of a data set, read once; with its own labels, if it has some."""
    if not hasattr(data, "__len__"):
        raise ValueError(
            f"{type(data).__name__} must have __len__ and __getitem__: the order of the data is "
            "drawn by vae_lab"
        )
    rows: Sequence[Any] = [data[index] for index in range(len(data))]
    if rows and isinstance(rows[0], tuple | list):
        if y is None and len(rows[0]) > 1 and np.ndim(rows[0][1]) == 0:
            y = [int(row[1]) for row in rows]
        rows = [row[0] for row in rows]
    return torch.stack([torch.as_tensor(row) for row in rows]), y
