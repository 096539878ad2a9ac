"""Any folder of pictures, however large."""

import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.base import check_size, contents, files_below, one_line, split
from datamodules.streamed import StreamedDataModule
from vae_lab.image_files import MODES, fit
from vae_lab.seeding import derive_seed
from vae_lab.stream import Reader, Rows, Tensors

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_SKIPPED = 0.01  # of all pictures; above it the folder is at fault, not a file


@dataclass(kw_only=True, eq=False)
class ImageFolder(StreamedDataModule):
    """All pictures below a folder, decoded when they are needed, or once if they fit in memory.

    A picture is scaled until its shorter side fits, and its middle is cut out. Its label is the
    number of the subfolder of `root` that holds it, in alphabetical order, and -1 for a picture in
    `root` itself. The test and validation images are drawn by `split_seed`.

    Args:
        root: the folder; searched with all its subfolders, also those that are links.
        image_size: of the square to cut out, or [height, width].
        channels: 1 for grey, 3 for colour.
        test_size: a count, or a fraction below 1 of all pictures.
        memory_gb: up to this size, decoded, the pictures are kept in memory; this changes only the
            speed. With 0 they never are.
        on_corrupt: "error" stops at a file that cannot be decoded; "skip" puts the next picture of
            its split in its place and says so, but more than 1 % of all is an error still.
    """

    root: str
    image_size: int | Sequence[int] = 64
    channels: int = 3
    test_size: int | float = 0.1
    memory_gb: float = 1.0
    on_corrupt: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in MODES:
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.on_corrupt not in ("error", "skip"):
            raise ValueError(f"on_corrupt must be error or skip, got {self.on_corrupt!r}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"image_size must be a side or [height, width], got {self.image_size}")
        if not self.memory_gb >= 0:
            raise ValueError(f"memory_gb must not be negative, got {self.memory_gb}")
        check_size("test_size", self.test_size)
        self._total = 0
        self._unreadable: dict[str, str] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.image_size
        return (self.channels, *((size, size) if isinstance(size, int) else size))

    def check_root(self) -> None:
        """Refuses a folder that is not there."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise _holds_none(root)

    def open(self) -> tuple[Reader, Reader]:
        self.check_root()
        root = Path(self.root).expanduser()
        names = _pictures(root)
        if not names:
            raise _holds_none(root)
        self._total = len(names)
        spare = int(MAX_SKIPPED * len(names)) + 1 if self.on_corrupt == "skip" else 0
        encoded = np.array([os.fsencode(name) for name in names])
        pictures = Pictures(root, encoded, _labels(names), self.shape, spare)
        test, train = split(len(names), self.test_size, derive_seed(self.split_seed, "test"))
        return pictures.subset(train), pictures.subset(test)

    def setup(self, stage: str = "fit") -> None:
        """Reads the splits if they fit in memory: once it is known which pictures are in each, as
        another of its split stands in for a corrupted one."""
        if self._splits:
            return
        super().setup(stage)
        if self._total * math.prod(self.shape) <= self.memory_gb * 1e9:
            # The largest first: if it does not fit after all, that is known at once.
            parts = sorted(self._splits.items(), key=lambda item: -len(item[1]))
            self._splits = {name: self._read_all(part) for name, part in parts}

    def _read_all(self, pictures: Reader) -> Tensors:
        images = torch.empty((len(pictures), *self.shape), dtype=torch.uint8)
        labels = torch.empty(len(pictures), dtype=torch.int64)
        parts = torch.arange(len(pictures)).split(64)
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
            for part, found in zip(parts, pool.map(pictures.read, parts), strict=True):
                images[part], labels[part], unreadable = found
                self.report(unreadable)
        return Tensors(images, labels)

    def report(self, unreadable: dict[str, str]) -> None:
        """Names each file once; refuses too many."""
        new = [path for path in unreadable if path not in self._unreadable]
        self._unreadable |= unreadable
        count = f"{len(self._unreadable)} of {self._total} pictures cannot be read"
        if len(self._unreadable) > MAX_SKIPPED * self._total:
            first = next(iter(self._unreadable))
            raise ValueError(
                f"{count}, the first is {first}; more than {MAX_SKIPPED:.0%} is too many to skip"
            )
        for path in new:
            reason = self._unreadable[path]
            warnings.warn(f"{path} ({reason}): the next picture stands in; {count}", stacklevel=2)


@dataclass(frozen=True)
class Pictures:
    """Picture files as a :class:`vae_lab.stream.Reader`.

    Args:
        root: the folder that the names start from.
        names: of the files, shape [N], bytes in one array: a list's strings would be copied into
            each process that reads, bit by bit, as their reference counts are written.
        labels: shape [N].
        shape: (C, H, W) to fit them to.
        spare: how many pictures after an unreadable one may be tried in its place.
    """

    root: Path
    names: np.ndarray
    labels: Tensor
    shape: tuple[int, ...]
    spare: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: Tensor) -> "Pictures":
        names, labels = self.names[rows.numpy()], self.labels[rows]
        return Pictures(self.root, names, labels, self.shape, self.spare)

    def read(self, rows: Sequence[int]) -> Rows:
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        labels = torch.empty(len(rows), dtype=torch.int64)
        unreadable: dict[str, str] = {}
        for place, row in enumerate(rows):
            images[place], labels[place] = self._read_one(int(row), unreadable)
        return Rows(images, labels, unreadable)

    def _read_one(self, row: int, unreadable: dict[str, str]) -> tuple[Tensor, Tensor]:
        for candidate in range(row, row + self.spare + 1):
            number = candidate % len(self)
            path = self.root / os.fsdecode(self.names[number])
            try:
                return decode(path, self.shape), self.labels[number]
            # Pillow's decoders raise all of these, and few say which file it was.
            except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
                unreadable[str(path)] = one_line(e)
        path, reason = next(iter(unreadable.items()))
        if self.spare:
            raise ValueError(
                f"{self.spare + 1} pictures in a row cannot be read, near {path} ({reason}); more "
                f"than {MAX_SKIPPED:.0%} of all is too many to skip"
            )
        raise ValueError(
            f"{path} is not a readable picture ({reason}); remove it, or data.on_corrupt=skip"
        )


def _holds_none(root: Path) -> FileNotFoundError:
    kinds = " ".join(SUFFIXES)
    return FileNotFoundError(f"data.root must hold pictures ({kinds}): {contents(root)}")


def decode(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The picture in this file, fitted to this shape, uint8."""
    with Image.open(path) as picture:
        return fit(picture, shape)


def _pictures(root: Path) -> list[str]:
    """The names of all pictures, from `root` on, folder by folder."""
    found = [
        path.relative_to(root).as_posix()
        for path in files_below(root)
        # macOS leaves a hidden "._name.jpg" beside a picture.
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda name: name.split("/"))


def _labels(names: list[str]) -> Tensor:
    parts = [name.split("/") for name in names]
    folders = sorted({part[0] for part in parts if len(part) > 1})
    numbers = {folder: number for number, folder in enumerate(folders)}
    return torch.tensor([numbers[part[0]] if len(part) > 1 else -1 for part in parts])
