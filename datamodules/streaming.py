"""Shards of images, on a disk or in an object store."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.folders import CACHE, one_line
from datamodules.streamed import StreamedDataModule
from vae_lab.data.rows import as_labels
from vae_lab.data.stream import Reader, Rows

if TYPE_CHECKING:
    from litdata import StreamingDataset

FORMAT = ["tensor", "int"]  # litdata knows others, such as pickles, which may run code
NO_SHARDS = "data.root must hold the shards that task=shards writes, in train/ and test/"


@dataclass(kw_only=True, eq=False)
class Streaming(StreamedDataModule):
    """The shards that `task=shards` has written from any other data set.

    A shard is downloaded when the first of its images is needed, and kept. The batches are those of
    the data set that was written, with the same settings.

    Args:
        root: the folder that holds train/ and test/, or its address: s3://..., gs://..., azure://...,
            or local:FOLDER for a mounted disk from which to copy as from a store.
        cache_dir: where to keep what is downloaded; by default ~/.cache/vae_lab/shards.
    """

    root: str
    cache_dir: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._train.shape

    @property
    def pixels(self) -> dict[str, Any]:
        return self._train.index.get("pixels", {})

    @property
    def classes(self) -> int | None:  # type: ignore[override]
        return self._with_labels()["classes"]

    @property
    def label_names(self) -> tuple[Any, ...] | None:  # type: ignore[override]
        names = self._train.index.get("label_names")
        return None if names is None else tuple(names)

    @property
    def attributes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        names = self._with_labels()["attributes"]
        return None if names is None else tuple(names)

    def open(self) -> tuple[Reader, Reader]:
        if self.labelled is not None:
            self._with_labels()
        return self._train, self._shards("test")

    @cached_property
    def _train(self) -> "Shards":
        return self._shards("train")

    def _with_labels(self) -> dict[str, Any]:
        """What the index says, if it lists the labels."""
        index = self._train.index
        if "labels" not in index:
            raise ValueError(
                f"{self.root} holds shards of an earlier version, without a list of their labels: "
                "write them again with task=shards"
            )
        return index

    def check_root(self) -> None:
        """Refuses a folder of this machine that is not there."""
        root = Path(self.root).expanduser()
        if not self._is_remote and not root.is_dir():
            raise FileNotFoundError(f"{NO_SHARDS}: {root} is not a folder")

    @property
    def _is_remote(self) -> bool:
        return self.root.startswith("local:") or "://" in self.root

    def _shards(self, name: str) -> "Shards":
        self.check_root()
        remote = self._is_remote
        root = self.root if remote else str(Path(self.root).expanduser().absolute())
        cache = Path(self.cache_dir or CACHE / "shards")
        return Shards.all_of(
            f"{root.rstrip('/')}/{name}", str(cache.expanduser()) if remote else None
        )


@dataclass(eq=False)
class Shards:
    """Shards as a :class:`vae_lab.data.stream.Reader`.

    Args:
        address: of the folder with litdata's index.json.
        cache_dir: where to keep what is downloaded.
        rows: the numbers of these images, [N].
        labels: their labels, [N], or attributes, [N, A]; None: older shards, which do not list them
            and have them beside each image only.
    """

    address: str
    cache_dir: str | None
    rows: Tensor
    labels: Tensor | None = None

    _process = 0

    @classmethod
    def all_of(cls, address: str, cache_dir: str | None) -> "Shards":
        """All images of a folder."""
        found = cls(address, cache_dir, torch.arange(0))
        found.rows = torch.arange(len(found._data.cache))
        labels = found.index.get("labels")
        found.labels = None if labels is None else as_labels(labels)
        return found

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._item(0)["image"].shape)

    @property
    def index(self) -> dict[str, Any]:
        """litdata's, with what `task=shards` adds; older shards lack some or all of it."""
        return json.loads(Path(self._data.input_dir.path, "index.json").read_text())

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: Tensor) -> "Shards":
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, rows=self.rows[rows], labels=labels)

    def read(self, rows: Sequence[int]) -> Rows:
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        labels = torch.empty(len(rows), dtype=torch.int64)
        numbers, places = self.rows[rows].sort()  # each shard is opened once
        for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
            item = self._item(number)
            images[place], labels[place] = item["image"], item["label"]
        return Rows(images, labels if self.labels is None else self.labels[rows])

    def _item(self, number: int) -> dict[str, Any]:
        try:
            return self._data[number]
        except Exception as error:  # of the store's own library, or of a damaged shard
            raise OSError(
                f"image {number} of {self.address} cannot be read ({one_line(error)}); if its "
                "shard is damaged, write it again with task=shards"
            ) from error

    @property
    def _data(self) -> "StreamingDataset":
        """This process's own: open files and threads cannot be shared."""
        if self._process != os.getpid():
            self._process, self._opened = os.getpid(), self._open()
        return self._opened

    def _open(self) -> "StreamingDataset":
        try:
            from litdata import StreamingDataset
        except ImportError as error:
            raise ImportError(
                "data=streaming needs litdata: type pip install -e '.[streaming]'"
            ) from error
        try:
            data = StreamingDataset(
                self.address,
                cache_dir=self.cache_dir,
                max_cache_size=2**62,  # it would delete shards that other processes read
                batch_decode=False,  # neighbours of an image are seldom the next
            )
            index = json.loads(Path(data.input_dir.path, "index.json").read_text())
            found = index["config"]["data_format"]
            if found == FORMAT:
                data[0]
                data.on_demand_bytes = False  # or it would fetch image by image, and keep nothing
        except Exception as error:  # of the store's own library
            raise FileNotFoundError(f"{NO_SHARDS}: {self.address} ({one_line(error)})") from error
        if found != FORMAT:
            raise ValueError(
                f"{self.address} must hold a {' and an '.join(FORMAT)} for each image, as "
                f"task=shards writes them, got {found}"
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_opened"}
        return kept | {"_process": 0}


def write_shards(datamodule: ImageDataModule, folder: Path, shard_mb: float = 64) -> dict[str, int]:
    """Writes all images of a data set to train/ and test/ in this folder, as they are trained on.

    Returns:
        How many there are in each.
    """
    from litdata.streaming import Cache

    counts = {}
    for name, images in zip(("train", "test"), datamodule.open(), strict=True):
        target = folder / name
        if target.exists():
            raise ValueError(f"{target} exists already: remove it, or type another run_dir")
        target.mkdir(parents=True)
        shards = Cache(str(target), chunk_bytes=int(shard_mb * 1e6))
        labels: list[Any] = []
        for batch in datamodule._loader_of(images, datamodule.eval_batch_size):
            pixels = batch.x.mul(255).round().byte()
            for image, label in zip(pixels, batch.y.tolist(), strict=True):
                one = label if isinstance(label, int) else -1  # attributes are in the index only
                shards[len(labels)] = {"image": image, "label": one}
                labels.append(label)
        shards.done()
        shards.merge()  # writes index.json, without which the folder is not taken for whole
        _add_to_index(target, datamodule, labels)
        counts[name] = len(labels)
    return counts


def _add_to_index(folder: Path, datamodule: ImageDataModule, labels: list[Any]) -> None:
    """Adds what is known before an image is read to litdata's index, a file that every reader
    fetches anyway: the pictures' settings, and the labels [N] or attributes [N, A].

    litdata ignores entries that it does not know.
    """
    kept = ("pixels", "classes", "label_names", "attributes")
    of_data = {name: getattr(datamodule, name) for name in kept}
    index = folder / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | of_data | {"labels": labels}))
