"""The base class of data of one's own, which may be of any kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.base import VALUES, Part
from datamodules.streamed import StreamedDataModule
from vae_lab.data import Prepare
from vae_lab.data.columns import Column
from vae_lab.data.rows import in_memory, labels_of
from vae_lab.data.splits import check_size, split_rows
from vae_lab.data.stream import Reader
from vae_lab.data.tables import as_text, likelihood_of
from vae_lab.seeding import derive_seed


class Opened(NamedTuple):
    """The data as it is stored.

    Attributes:
        train: for training, and for what is not given.
        val: for validation, if it is given.
        test: for the test, if it is given.
        columns: of its last axis; none for pictures.
        reasons: for their kinds, where these were guessed.
        missing: are values missing.
        pictures: is it stored as the bytes of pictures.
        attributes: the names of what stands for labels, where these have names.
        label_names: of the classes of labels, where these have names.
    """

    train: Reader
    val: Reader | None
    test: Reader | None
    columns: list[Column]
    reasons: list[str]
    missing: bool
    pictures: bool
    attributes: Sequence[str] = ()
    label_names: Sequence[Any] = ()


@dataclass(kw_only=True, eq=False)
class Values(StreamedDataModule):
    """Vectors [N, D], series [N, T, D] or pictures [N, C, H, W], of numbers of any kind.

    A subclass gives `opened`. Bytes and bits [N, C, H, W] are pictures like those of all other
    data sets; anything else is seen as it is, in its own units, NaN where it is missing.

    Args:
        columns: of the last axis, by name (of arrays "0", "1", ...): the kind, such as lognormal,
            in the place of the one that is guessed; null leaves a column out. A list is taken for
            all columns as they are; a run keeps one.
        test_size: a count, or a fraction below 1, for the test where it is not given.
        memory_gb: up to this size the data is kept in memory; larger data is read when it is
            needed. This changes only the speed. With 0 it never is kept.
    """

    unit = "examples"

    columns: dict[str, str | None] | list[dict[str, Any]] | None = None
    test_size: int | float = 0.1
    memory_gb: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("test_size", self.test_size)
        if not self.memory_gb >= 0:
            raise ValueError(f"memory_gb must not be negative, got {self.memory_gb}")

    @cached_property
    def opened(self) -> Opened:
        """Opened when somebody asks for it."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        return self.opened.train.shape

    @property
    def label_names(self) -> tuple[Any, ...] | None:  # type: ignore[override]
        return tuple(self.opened.label_names) or None

    @property
    def classes(self) -> int | None:  # type: ignore[override]
        labels = self._train_labels
        if labels.ndim > 1 or (labels < 0).all():
            return None
        return len(self.label_names or ()) or int(labels.max()) + 1

    @property
    def attributes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        labels = self._train_labels
        if labels.ndim < 2:
            return None
        return tuple(self.opened.attributes) or tuple(map(str, range(labels.shape[1])))

    @cached_property
    def _train_labels(self) -> Tensor:
        """Of the data to train on, which is read for it: asked for by a conditional model only."""
        return labels_of(self.opened.train)

    @property
    def schema(self) -> list[Column]:
        """All columns as they are read: what `columns` may be set to, to guess no more."""
        return self.opened.columns

    @property
    def guess(self) -> str:
        """What was guessed of the columns, to be read; empty where nothing was."""
        return as_text(self.opened.columns, self.opened.reasons) if self.opened.reasons else ""

    def own_likelihood(self) -> dict[str, Any]:
        if self.opened.pictures:
            return super().own_likelihood()
        return likelihood_of(self.opened.columns, self.opened.missing)

    def prepare(self) -> Prepare:
        return super().prepare() if self.opened.pictures else Prepare()

    def augment(self) -> Prepare:
        return super().augment() if self.opened.pictures else Prepare()

    def open(self) -> tuple[Reader, Reader]:
        """The data to train on and to validate on, but for a file of the latter, and the test."""
        train, test = self.opened.train, self.divided()["test"]
        if test.rows is None:
            return train, test.data
        kept = torch.ones(len(train), dtype=torch.bool)
        kept[test.rows] = False
        return train.subset(kept.nonzero()[:, 0]), test.data

    def divided(self) -> dict[str, Part]:
        self._check_for_pictures()
        given = {"val": self.opened.val, "test": self.opened.test}
        found = {name: Part(reader) for name, reader in given.items() if reader is not None}
        rows = torch.arange(len(self.opened.train))
        for name, size in (("test", self.test_size), ("val", self.val_size)):
            if name not in found:
                some, rest = split_rows(len(rows), size, derive_seed(self.split_seed, name))
                found[name], rows = Part(self.opened.train, rows[some]), rows[rest]
        train = Part(self.opened.train, rows if len(rows) < len(self.opened.train) else None)
        return {"val": found["val"], "train": train, "test": found["test"]}

    def setup(self, stage: str = "fit") -> None:
        if self._splits:
            return
        self._splits = {name: part.data for name, part in self.divided().items()}
        self._check_counts()
        if sum(map(len, self._splits.values())) * self._bytes() <= self.memory_gb * 1e9:
            self._splits = {name: in_memory(part) for name, part in self._splits.items()}
        self._hide_labels()

    def _bytes(self) -> int:
        """Of one datum."""
        return math.prod(self.shape) * (1 if self.opened.pictures else 4)

    def _check_for_pictures(self) -> None:
        asked = {"binarize": self.binarize != "none", "flip": self.flip, "crop": self.crop}
        for name in [name for name, is_set in asked.items() if is_set]:
            if not self.opened.pictures:
                raise ValueError(
                    f"data.{name} is for pictures of bytes [N, C, H, W], the data has the shape "
                    f"{list(self.shape)}: leave it out"
                )

    def train_mean(self, most: int | None = None) -> Tensor:
        if self.opened.pictures:
            return super().train_mean(most)
        return self.train_values(most or VALUES).nanmean(0)
