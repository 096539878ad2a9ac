"""Readers of arrays and of torch's data sets: see :class:`vae_lab.data.stream.Reader`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .array_files import open_arrays, read_table
from .columns import Column, of_text, unmasked
from .stream import Reader, Rows, Tensors
from .tables import as_array, encode_array

if TYPE_CHECKING:
    import pyarrow

CHUNK = 4096  # rows that are read at once


def are_pictures(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether data of this shape are stored as the bytes, or bits, of pictures [C, H, W]."""
    return len(shape) == 3 and dtype in (np.uint8, np.bool_)


def as_stored(array: np.ndarray, columns: Sequence[Column], where: str) -> Tensor:
    """Rows of an array as they are kept: pictures as bytes, all else as float32."""
    if not are_pictures(array.shape[1:], array.dtype):
        return torch.from_numpy(encode_array(array, columns, where))
    bits = array.dtype == np.bool_
    return torch.from_numpy(array.astype(np.uint8) * 255 if bits else np.array(array))


@dataclass(frozen=True)
class MappedArray:
    """An array in a file, opened anew in each process that has a copy of this."""

    path: Path
    name: str

    @property
    def array(self) -> np.ndarray:
        if "_array" not in self.__dict__:
            self.__dict__["_array"] = with_channel(as_array(open_arrays(self.path)[self.name]))
        return self.__dict__["_array"]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def with_channel(array: np.ndarray) -> np.ndarray:
    """Bytes [N, H, W] are grey pictures."""
    return array[:, None] if array.dtype == np.uint8 and array.ndim == 3 else array


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array in a file.

    Args:
        source: the array.
        columns: of its last axis; none for pictures.
        labels: shape [N] or [N, A].
        rows: their numbers in the array, [N].
    """

    source: MappedArray
    columns: Sequence[Column]
    labels: Tensor
    rows: Tensor

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.source.array.shape[1:]
        return (*shape[:-1], len(self.columns)) if self.columns else shape

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: Tensor) -> "ArrayRows":
        return replace(self, rows=self.rows[rows], labels=self.labels[rows])

    def read(self, rows: Sequence[int]) -> Rows:
        index = torch.as_tensor(rows, dtype=torch.int64)
        found = self.source.array[self.rows[index].numpy()]
        return Rows(as_stored(found, self.columns, str(self.source.path)), self.labels[index])

    def original(self, rows: Tensor) -> np.ndarray:
        """Rows of the file as they are there."""
        return np.array(open_arrays(self.source.path)[self.source.name][rows.numpy()])


@dataclass(frozen=True)
class TableRows(Tensors):
    """All rows of a table in a file, in memory.

    Args:
        path: of the file.
        columns: that the data is read from.
    """

    path: Path
    columns: Sequence[Column]

    def subset(self, rows: Tensor) -> Tensors:
        return Tensors(self.images[rows], self.labels[rows])

    def original(self, rows: Tensor) -> "pyarrow.Table":
        """Rows of the file as they are there, with all columns."""
        if "_table" not in self.__dict__:
            known = [column["name"] for column in self.columns]
            self.__dict__["_table"] = read_table(self.path, of_text(self.columns), known)
        return self.__dict__["_table"].take(rows.numpy())


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a torch Dataset, whose items are x, or x and a label.

    Args:
        dataset: with a length.
        columns: of the last axis of x; none for pictures.
        rows: the numbers of those that this is of.
    """

    dataset: Any
    columns: Sequence[Column]
    rows: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.read([0]).images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: Tensor) -> "DatasetRows":
        return replace(self, rows=self.rows[rows])

    def raw(self, rows: Sequence[int]) -> tuple[np.ndarray, Tensor]:
        """The values as they are, and the labels."""
        items = [self.dataset[int(number)] for number in self.rows[torch.as_tensor(rows)]]
        pairs = [item if isinstance(item, tuple | list) else (item, -1) for item in items]
        x = np.stack([unmasked(np.asanyarray(pair[0])) for pair in pairs])
        return with_channel(as_array(x)), as_labels([pair[1] for pair in pairs])

    def read(self, rows: Sequence[int]) -> Rows:
        x, labels = self.raw(rows)
        return Rows(as_stored(x, self.columns, type(self.dataset).__name__), labels)


def as_labels(labels: Any) -> Tensor:
    """Labels [N] as int64, attributes [N, A] as float32."""
    array = np.asarray(labels)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"labels must be numbers, got {array.dtype}: number the classes from 0")
    found = torch.as_tensor(array)
    return found.float().reshape(len(found), -1) if found.is_floating_point() else found.long()


def in_memory(reader: Reader) -> Tensors:
    """All rows of a reader."""
    parts = [reader.read(part) for part in torch.arange(len(reader)).split(CHUNK)]
    labels = torch.cat([part.labels for part in parts])
    return Tensors(torch.cat([part.images for part in parts]), labels)


def labels_of(reader: Reader) -> Tensor:
    """The labels of all rows of a reader."""
    parts = torch.arange(len(reader)).split(CHUNK)
    return torch.cat([reader.read(part).labels for part in parts])
