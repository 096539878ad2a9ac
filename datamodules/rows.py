"""Rows of a data set: which are kept, and which labels are known."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from vae_lab.data.stream import Reader, Tensors


def labels_in_memory(data: Reader) -> Tensor:
    """All labels of data that has them in memory."""
    labels = getattr(data, "labels", None)
    if not isinstance(labels, Tensor):
        raise ValueError(f"{type(data).__name__} does not know its labels before they are read")
    return labels


def hide_labels(data: Reader, count: int, seed: int) -> Reader:
    """The same data with so many labels, equally many of each class; the others are -1."""
    labels = labels_in_memory(data)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    classes = labels[labels >= 0].unique()
    if not len(classes):
        raise ValueError(f"labelled={count} needs data with labels, this has none: leave it out")
    if count < len(classes):
        raise ValueError(
            f"labelled={count} leaves {len(classes) - count} of {len(classes)} classes without a "
            f"label: type data.labelled={len(classes)} or more"
        )
    kept = torch.full_like(labels, -1)
    for number, label in enumerate(classes):
        share = count // len(classes) + (number < count % len(classes))
        rows = order[labels[order] == label][:share]
        if len(rows) < share:
            raise ValueError(
                f"labelled={count} are {share} of each class, the training data has {len(rows)} of "
                f"class {label}: lower data.labelled"
            )
        kept[rows] = label
    return replace(cast(Any, data), labels=kept)


def keep(data: Reader, rows: Tensor) -> Reader:
    """`data.subset(rows)` for increasing rows and data that nothing else needs: what is in memory
    moves within it, as a second copy may not fit."""
    if not isinstance(data, Tensors):
        return data.subset(rows)
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        data.images[start : start + len(part)] = data.images[part]
    return Tensors(data.images[: len(rows)], data.labels[rows])
