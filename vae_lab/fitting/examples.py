"""What is trained on: an array, a frame or a data set, as batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..conditions import Attributes, Condition, InferredLabels, Labels
from ..data import Pixels, Prepare, TensorLoader
from ..data.columns import Column
from ..data.rows import are_pictures, as_stored
from ..data.splits import check_size, split_rows
from ..data.tables import Table, as_array, as_named, encode_array, of_array, of_named
from ..inputs import NUMBERED, Shape, as_numbers, as_numpy
from ..likelihoods import Bernoulli, Columns, Gaussian, Likelihood
from ..seeding import derive_seed
from ..vae import VAE

EVAL_BATCH_SIZE = 512
SPLIT_SEED = 0  # not the run's: several seeds are compared on the same held-out data
FEW_CLASSES = 1000  # which there may be even of fewer data
GRID_MEAN_OF = 1000  # images: a grid starts at one number a channel, not at one a pixel


class Examples(NamedTuple):
    """Data of one shape in memory.

    Attributes:
        stored: [N, *X], bytes of pictures or floats.
        labels: [N] int64, -1 where there are none; or attributes, [N, A] floats.
        prepare: makes of `stored` what the model takes.
        columns: of the last axis, where that is one of columns; see :class:`.Columns`.
        missing: is any value missing, here or in the data to validate on.
        classes: the values of labels, or the names of attributes, that came from a frame.
        given: the shape of a datum as the caller has it, with columns that are left out.
    """

    stored: Tensor
    labels: Tensor
    prepare: Prepare
    columns: list[Column] = []
    missing: bool = False
    classes: Sequence[Any] = ()
    given: Shape = ()

    def subset(self, rows: Tensor | slice) -> "Examples":
        """Those of these rows."""
        return self._replace(stored=self.stored[rows], labels=self.labels[rows])

    @property
    def shape(self) -> Shape:
        return tuple(self.stored.shape[1:])

    @property
    def likelihood(self) -> Likelihood:
        """The one for data of this kind."""
        if self.are_bytes:
            return Bernoulli()
        if self.columns:
            return Columns(self.columns, self.missing)
        return Gaussian(learned=True, standardize=True, missing=self.missing)

    @property
    def condition(self) -> Condition | None:
        """What the labels make of the model: those that are all there condition it, those of which
        some are missing are inferred."""
        if self.labels.ndim == 2:
            return Attributes(self.labels.shape[1], self.classes or None)
        if self.unlabelled:
            return None
        kind = InferredLabels if (self.labels < 0).any() else Labels
        if self.classes:
            return kind(len(self.classes), names=self.classes)
        return kind(int(self.labels.max()) + 1)

    @property
    def unlabelled(self) -> bool:
        """Whether no datum has a label."""
        return self.labels.ndim == 1 and bool((self.labels < 0).all())

    def start(self, vae: VAE) -> None:
        """Lets the model learn the units of these data, and starts its decoder at their mean."""
        if vae.likelihood.learns_units:
            vae.initialize(self.stored)
        else:
            stored = self.stored
            if vae.latent.grid:
                stored = stored[:: -(-len(stored) // GRID_MEAN_OF)]
            parts = stored.split(EVAL_BATCH_SIZE)
            vae.initialize_bias(Pixels().mean(parts) if self.are_bytes else stored.mean(0))
        if vae.condition is not None:
            vae.condition.start(self.labels)

    def seen(self, most: int) -> tuple[Tensor, Tensor]:
        """At most so many of them, evenly over all, as a model sees them, and their labels."""
        every = -(-len(self.stored) // most)
        some = self.stored[::every]
        return some.float() / 255 if self.are_bytes else some, self.labels[::every]

    @property
    def are_bytes(self) -> bool:
        """Whether these are pictures, stored as bytes."""
        return isinstance(self.prepare, Pixels)

    def loader(
        self,
        stage: str,
        batch_size: int,
        seed: int,
        device: torch.device,
        labelled_share: float = 0.0,
    ) -> TensorLoader:
        return TensorLoader(
            self.stored,
            self.labels,
            batch_size,
            labelled_share=labelled_share,
            stage=stage,
            seed=seed,
            shuffle=stage == "train",
            prepare=self.prepare,
            device=device,
        )


def examples(
    x: Any,
    y: Any = None,
    columns: Any = None,
    where: str = "x",
    classes: Sequence[Any] = (),
    schema: Sequence[Column] = (),
) -> Examples:
    """What the caller has, in memory.

    Args:
        x: numbers, an array or a tensor [N, *X]; a frame; or a data set of torch's, of x or (x, y),
            of which y is left aside.
        y: labels [N], integers; attributes [N, A], floats; or the name of a frame's column, or a
            list of several.
        columns: of a frame or an array; see :func:`vae_lab.data.tables.as_table`.
        where: they come from, for messages.
        classes: the values of labels in a frame, or the names of attributes, where they are known.
        schema: the columns of a model, which takes an array of no more and no less than these.
    """
    if isinstance(x, Dataset):
        x = _read(x)
    read, names = schema or columns, y if names_columns(y) else None
    named = as_named(x, read, names, where)
    if named is not None:
        table = of_named(named, read, names, classes, where)
        labels = _labels(y, len(table.x)) if table.labels is None else table.labels
        return _of_table(table, labels, tuple(table.x.shape[1:]))
    if names_columns(y):
        raise ValueError(f"y={y!r} is the name of a frame's column, and x is none: pass the labels")
    array = as_array(as_numpy(where, x))
    given = array.shape[1:]
    labels = _labels(y, len(array))
    if columns and array.ndim == 4:
        raise ValueError(
            f"columns={columns!r} are those of a table, and {where} has pictures [N, C, H, W]: "
            "leave columns out"
        )
    if are_pictures(given, array.dtype):
        if array.dtype == np.uint8 and array.max() <= 1:
            raise ValueError(
                "x has bytes of 0 and 1 only, and pictures have 0 to 255: pass 255 * x if it is "
                "black and white, or x as floats if these are numbers"
            )
        return Examples(as_stored(array, [], where).contiguous(), labels, Pixels(), given=given)
    if schema:
        table = Table(torch.from_numpy(encode_array(array, [], where)), [*schema])
    else:
        table = of_array(array, columns, where)
    return _of_table(table, labels, given)


def _of_table(table: Table, labels: Tensor, given: Shape) -> Examples:
    found = table.columns, table.missing, table.classes
    return Examples(table.x, labels, Prepare(), *found, given)


def names_columns(y: Any) -> bool:
    """Whether y is the name of a frame's column, or a list of several."""
    return isinstance(y, str) or (
        isinstance(y, list) and bool(y) and all(isinstance(name, str) for name in y)
    )


def _labels(y: Any, count: int) -> Tensor:
    if y is None:
        return torch.full((count,), -1)
    labels = torch.from_numpy(as_numbers("y", y))
    if labels.shape[:1] != (count,) or labels.ndim > 2:
        raise ValueError(f"y must have the shape [{count}] or [{count}, A], got {[*labels.shape]}")
    if not labels.isfinite().all():
        row, *place = (~labels.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"y is {labels[row, *place].item()} in row {row}: fill it in, or type -1 for a label "
            "that is not known"
        )
    if labels.ndim == 2:
        return labels.float()
    if labels.is_floating_point() and not (labels == labels.round()).all():
        return labels.float().unsqueeze(1)
    labels = labels.long()
    if labels.min() < -1:
        raise ValueError(
            f"y must be 0, 1, 2, ..., and -1 where there is no label, got {int(labels.min())}"
        )
    if labels.max() >= max(count, FEW_CLASSES):
        raise ValueError(f"y has the label {int(labels.max())}, of {count} data: {NUMBERED}")
    return labels


def held_out(data: Examples, size: float) -> tuple[Examples, Examples | None]:
    """The data to train on, and a random part to validate on: so many, or such a fraction."""
    if isinstance(size, np.generic):
        size = size.item()
    if not size:
        return data, None
    if not isinstance(size, float | int):
        raise ValueError(f"val_size must be a count or a fraction, got {size!r}")
    check_size("val_size", size)
    val, train = split_rows(len(data.stored), size, derive_seed(SPLIT_SEED, "val"))
    if not len(val) or not len(train):
        raise ValueError(
            f"val_size={size:g} of {len(data.stored)} data leaves {len(train)} to train on and "
            f"{len(val)} to validate on: each needs 1 at least, or type val_size=0"
        )
    return data.subset(train), data.subset(val)


def _read(data: "Dataset[Any]") -> np.ndarray:
    """All data of a data set, read once, without labels of its own."""
    if not hasattr(data, "__len__"):
        raise ValueError(
            f"{type(data).__name__} must have __len__ and __getitem__: the order of the data is "
            "drawn by vae_lab"
        )
    rows = [data[index] for index in range(len(data))]
    if not rows:
        raise ValueError(f"{type(data).__name__} has no items")
    rows = [row[0] if isinstance(row, tuple | list) else row for row in rows]
    for number, row in enumerate(rows):
        if not isinstance(row, Tensor | np.ndarray | np.generic | float | int):
            raise ValueError(
                f"item {number} of {type(data).__name__} must be x or (x, y) with x an array or a "
                f"tensor, got {type(row).__name__}"
            )
        if np.shape(row) != np.shape(rows[0]):
            raise ValueError(
                f"all items of {type(data).__name__} must have one shape, the first has "
                f"{[*np.shape(rows[0])]}, item {number} {[*np.shape(row)]}"
            )
    return np.stack([as_numpy("x", row) for row in rows])
