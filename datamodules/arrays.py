"""Arrays and tables in files."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.values import Opened, Values
from vae_lab.data.array_files import check_file, is_table, main_array, open_arrays, read_table
from vae_lab.data.columns import Column, of_text
from vae_lab.data.rows import CHUNK, ArrayRows, MappedArray, TableRows, are_pictures, as_labels
from vae_lab.data.tables import (
    LOOKED_AT,
    Table,
    columns_of_array,
    from_arrow,
    of_named,
    schema_and_edits,
)


@dataclass(kw_only=True, eq=False)
class Arrays(Values):
    """Arrays or tables in files: .npy, .npz, .safetensors, .pt (tensors only), .csv, .parquet.

    Arrays have the shape [N, D], [N, T, D] or [N, C, H, W]; bytes [N, H, W] are grey pictures. Of
    several in a file, x is the data. A table has a row for each datum.

    Args:
        train: the file to train on.
        val: a file for validation; by default a part of the training data, see val_size.
        test: a file for the test; by default a part of the training data, see test_size.
        labels: the column of a table, or the array in the file, that is a datum's label; several
            columns of a table, or an array [N, A], are attributes.
        class_names: the values of a table's column of labels, in the order of their numbers; by
            default those of the training data in their own order. A run keeps them.
    """

    train: str
    val: str | None = None
    test: str | None = None
    labels: str | list[str] | None = None
    class_names: list[Any] | None = None

    def check_root(self) -> None:
        """Refuses files that are not there, or of another kind."""
        for name, path in self._paths.items():
            check_file(f"data.{name}", path)
            if is_table(path) != is_table(self._paths["train"]):
                raise ValueError(f"data.{name}={path} must be a table or arrays as {self.train} is")

    @property
    def _paths(self) -> dict[str, Path]:
        typed = {"train": self.train, "val": self.val, "test": self.test}
        return {name: Path(path).expanduser() for name, path in typed.items() if path is not None}

    @cached_property
    def opened(self) -> Opened:
        self.check_root()
        return self._tables() if is_table(self._paths["train"]) else self._arrays()

    def _tables(self) -> Opened:
        paths = self._paths
        train = self._table(paths.pop("train"), self.columns)
        others = {name: self._table(path, train) for name, path in paths.items()}
        readers = {name: _reader(table, self._paths[name]) for name, table in others.items()}
        missing = any(table.missing for table in (train, *others.values()))
        return Opened(
            _reader(train, self._paths["train"]),
            readers.get("val"),
            readers.get("test"),
            train.columns,
            train.reasons,
            missing,
            False,
            *((train.classes, ()) if isinstance(self.labels, list) else ((), train.classes)),
        )

    def _table(self, path: Path, like: Any) -> Table:
        """A file as a table; `like` is the training data's, or what is known of its columns."""
        of_train = not isinstance(like, Table)
        of_labels = isinstance(self.labels, str) and self.class_names or ()
        columns, classes = (like, of_labels) if of_train else (like.columns, like.classes)
        known, _ = schema_and_edits(columns)
        if isinstance(self.labels, str):
            known = [*known, {"name": self.labels, "values": classes}]
        named = from_arrow(read_table(path, of_text(known)), columns, self.labels, str(path))
        return of_named(named, columns, self.labels, classes, str(path))

    def _arrays(self) -> Opened:
        if not isinstance(self.labels, str | None):
            raise ValueError(
                f"data.labels={self.labels} names columns of a table, {self.train} holds arrays: "
                "type the name of one array, [N] for labels or [N, A] for attributes"
            )
        sources = {name: self._source(path) for name, path in self._paths.items()}
        array = sources["train"].array
        pictures = are_pictures(array.shape[1:], array.dtype)
        if pictures and not any((part > 1).any() for part in self._parts(array)):
            raise ValueError(
                f"{self.train} holds bytes of 0 and 1 only, and pictures have 0 to 255: store "
                "255 * x if they are black and white"
            )
        columns: list[Column] = []
        reasons: list[str] = []
        if array.ndim < 4:
            columns, reasons = columns_of_array(array, self.columns)
        for source in sources.values():
            if source.array.shape[1:] != array.shape[1:]:
                raise ValueError(
                    f"{source.path} holds data of shape {list(source.array.shape[1:])}, "
                    f"{self.train} of {list(array.shape[1:])}"
                )
        readers = {name: self._rows(source, columns) for name, source in sources.items()}
        missing = any(map(self._has_missing, (source.array for source in sources.values())))
        train, val, test = (readers.get(name) for name in ("train", "val", "test"))
        return Opened(train, val, test, columns, reasons, missing, pictures)

    def _source(self, path: Path) -> MappedArray:
        arrays = dict(open_arrays(path))
        arrays.pop(self.labels, None)
        return MappedArray(path, main_array(arrays, path))

    def _rows(self, source: MappedArray, columns: list[Column]) -> ArrayRows:
        count = len(source.array)
        return ArrayRows(source, columns, self._labels(source.path, count), torch.arange(count))

    def _labels(self, path: Path, count: int) -> Tensor:
        if self.labels is None:
            return torch.full((count,), -1)
        arrays = open_arrays(path)
        if self.labels not in arrays:
            raise ValueError(f"{path} has no array {self.labels!r}; it holds {', '.join(arrays)}")
        array = np.asarray(arrays[self.labels])
        if array.ndim == 1 and array.dtype.kind == "f":  # of classes, NaN where one is missing
            array = np.nan_to_num(array, nan=-1)
            if not (array == np.rint(array)).all():
                raise ValueError(
                    f"{self.labels} of {path} holds {array[array != np.rint(array)][0]:g}, and "
                    "labels [N] are classes: store it as [N, 1] for an attribute"
                )
            array = array.astype(np.int64)
        labels = as_labels(array)
        if len(labels) != count:
            raise ValueError(f"{path} has {len(labels)} {self.labels} for {count} rows of data")
        return labels

    def _has_missing(self, array: np.ndarray) -> bool:
        of_numbers = array.dtype.kind == "f"
        return of_numbers and any(np.isnan(part).any() for part in self._parts(array))

    def _parts(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """All rows, some at a time; of more data than fits in memory only every so many."""
        fits = array.size * 4 <= self.memory_gb * 1e9
        rows = array if fits else array[:: -(-len(array) // LOOKED_AT)]
        yield from (rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK))


def _reader(table: Table, path: Path) -> TableRows:
    labels = torch.full((len(table.x),), -1) if table.labels is None else table.labels
    return TableRows(table.x, labels, path, table.columns)
