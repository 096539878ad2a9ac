"""Data that need not fit in memory, such as images: where it is read from, and by whom."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..threads import cores
from .loader import Loader


class Rows(NamedTuple):
    """Some data of a set, as it is stored.

    Attributes:
        images: shape [B, *]; of images [B, C, H, W], uint8.
        labels: shape [B], int64; -1 where there are none.
        unreadable: files that others had to stand in for, and what is wrong with them.
    """

    images: Tensor
    labels: Tensor
    unreadable: dict[str, str] = {}


class Reader(Protocol):
    """A set of data of one shape, read by number. Processes that read have copies of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum as it is stored; of an image (C, H, W)."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Rows:
        """The data with these numbers, in this order; there may be none."""

    def subset(self, rows: Tensor) -> "Reader":
        """A reader of the data with these numbers only."""


@dataclass(frozen=True)
class Tensors:
    """A :class:`Reader` of data in memory, [N, *], be it images or not, and labels [N] int64."""

    images: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int]) -> Rows:
        return Rows(self.images[rows], self.labels[rows])

    def subset(self, rows: Tensor) -> "Tensors":
        return Tensors(self.images[rows], self.labels[rows])


class StreamLoader(Loader):
    """Batches of data that are read when they are needed, by processes of their own.

    The processes stay from epoch to epoch, until `close`. An iteration that is not finished ends
    them too. They only read: what they have read ahead is not part of a run's state.

    Args:
        reader: the data; its labels are known before it is read if it has them as `labels`, [N].
        labelled_share: see :class:`.TensorLoader`; where the labels are known.
        batch_size, settings: see :class:`Loader`.
        num_workers: processes, no more than there are cores; 0: this one reads.
        report: is told of each batch's unreadable files; it may raise.
    """

    def __init__(
        self,
        reader: Reader,
        batch_size: int,
        *,
        labelled_share: float = 0.0,
        num_workers: int = 0,
        report: Callable[[dict[str, str]], None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(reader.shape, len(reader), batch_size, **settings)
        labels = getattr(reader, "labels", None)
        if isinstance(labels, Tensor):
            self._know(labels, labelled_share)
        self.report = report
        self._parts: list[Tensor] = []
        num_workers = min(num_workers, cores())
        self._workers: DataLoader[Rows | Exception] = DataLoader(
            _Guarded(reader),
            batch_sampler=_Parts(self),
            collate_fn=_identity,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_the_group,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or torch's default one would be drawn from
        )

    def close(self) -> None:
        if self._workers._iterator is not None:
            self._workers._iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._workers._iterator = None

    def _fetch(self, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        self._parts = parts
        finished = False
        try:
            for found in self._found():
                if isinstance(found, Exception):
                    raise found
                if found.unreadable and self.report:
                    self.report(found.unreadable)
                stored = found.images.to(self.device, non_blocking=True)
                yield stored, found.labels.to(self.device, non_blocking=True)
            finished = True
        finally:
            if not finished:
                self.close()

    def _found(self) -> Iterator[Rows | Exception]:
        try:
            yield from self._workers
        except (OSError, EOFError) as error:  # not the reader's, which are handed over
            raise RuntimeError(f"DataLoader worker is lost: {error}") from error


class _Parts(Sampler[list[int]]):
    """Hands out the row numbers that the processes read in the next iteration."""

    def __init__(self, loader: StreamLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.loader._parts)


class _Guarded(Dataset[Any]):
    """Hands a reader's own errors over as they are: one that is raised in another process would
    come with that process's traceback as its message."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitems__(self, rows: list[int]) -> Rows | Exception:
        try:
            return self.reader.read(rows)
        except (OSError, ValueError) as error:
            return error.with_traceback(None)


def _identity(found: Any) -> Any:
    return found


def _leave_the_group(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach a group of processes: only the one that trains is to
    act on them, and it ends the others."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process has the run's own
