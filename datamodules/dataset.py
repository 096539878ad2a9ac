"""Any torch Dataset."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from datamodules.values import Opened, Values
from vae_lab.data.rows import CHUNK, DatasetRows, are_pictures
from vae_lab.data.tables import LOOKED_AT, columns_of_array


@dataclass(kw_only=True, eq=False)
class FromDataset(Values):
    """A torch Dataset, whose items are x, or x and a label.

    Each x is a vector, a series or a picture [C, H, W], all of the same shape. The items are read
    once if they fit in memory, and otherwise by number, when they are needed; an item has to be the
    same each time. As torchvision's have it, `dataset.classes` may be a list of the labels' names.

    Args:
        dataset: of all data, or of the training data.
        val_dataset: for validation; by default a part of the training data, see val_size.
        test_dataset: for the test; by default a part of the training data, see test_size.
    """

    dataset: Any
    val_dataset: Any = None
    test_dataset: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dataset", "val_dataset", "test_dataset"):
            _check_dataset(name, getattr(self, name), optional=name != "dataset")

    @cached_property
    def opened(self) -> Opened:
        given = {"train": self.dataset, "val": self.val_dataset, "test": self.test_dataset}
        plain = {
            name: DatasetRows(dataset, [], torch.arange(len(dataset)))
            for name, dataset in given.items()
            if dataset is not None
        }
        first, _ = plain["train"].raw([0])
        pictures = are_pictures(first.shape[1:], first.dtype)
        columns, reasons, missing = [], [], False
        if not pictures:
            looked_at = {name: _some(rows) for name, rows in plain.items()}
            missing = any(_has_missing(array) for array in looked_at.values())
            if first.ndim < 4:
                columns, reasons = columns_of_array(looked_at["train"], self.columns)
        readers = {
            name: DatasetRows(rows.dataset, columns, rows.rows) for name, rows in plain.items()
        }
        train, val, test = (readers.get(name) for name in ("train", "val", "test"))
        names = _class_names(self.dataset)
        return Opened(train, val, test, columns, reasons, missing, pictures, (), names)


def _check_dataset(name: str, dataset: Any, optional: bool) -> None:
    if dataset is None and optional:
        return
    lacking = [m for m in ("__getitem__", "__len__") if not hasattr(type(dataset), m)]
    if lacking:
        raise ValueError(
            f"data.{name} must be a Dataset with a length and items by number: "
            f"{type(dataset).__name__} has no {' and no '.join(lacking)}"
        )
    if not len(dataset):
        raise ValueError(f"data.{name} is empty")


def _class_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None)
    known = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return [*names] if known else []


def _some(rows: DatasetRows) -> np.ndarray:
    """As many items as are looked at for a guess, evenly over all."""
    numbers = torch.arange(0, len(rows), -(-len(rows) // LOOKED_AT))
    return np.concatenate([rows.raw(part)[0] for part in numbers.split(CHUNK)])


def _has_missing(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())
