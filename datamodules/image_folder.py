"""Any folder of pictures, however large."""

import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.base import Part
from datamodules.folders import contents, files_below, one_line
from datamodules.streamed import StreamedDataModule
from vae_lab.data.image_files import MODES, brightest, check_range, read, rgb
from vae_lab.data.splits import check_size, split_rows
from vae_lab.data.stream import Reader, Rows, Tensors
from vae_lab.seeding import derive_seed

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_SKIPPED = 0.01  # of all pictures, or one; above it the folder is at fault, not a file
SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini")
# What Pillow's decoders raise.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
LOOKED_AT = 8  # pictures, for a hint; one with a quarter of the range would be dark


@dataclass(kw_only=True, eq=False)
class ImageFolder(StreamedDataModule):
    """All pictures below a folder, decoded when they are needed, or once if they fit in memory.

    A picture is scaled until its shorter side fits, and its middle is cut out. Its label is the
    number of the subfolder of `root` that holds it, in alphabetical order, and -1 for a picture in
    `root` itself. The test and validation images are drawn by `split_seed`. Hidden files, and what
    operating systems leave behind, are left out and counted.

    Args:
        root: the folder; searched with all its subfolders, also those that are links.
        image_size: what pictures are scaled and cut to: the side of a square, or [height, width].
        channels: 1 for grey, 3 for colour.
        test_size: a count, or a fraction below 1 of all pictures.
        memory_gb: up to this size, decoded, the pictures are kept in memory; this changes only the
            speed. With 0 they never are.
        on_corrupt: "error" stops at a file that cannot be decoded; "skip" puts the next picture of
            its split in its place and says so, but more than 1 % of all (and more than one) is an
            error still.
        background: the colour seen where a picture is transparent: a name, or [red, green, blue].
        value_range: the values that become black and white in grey pictures with more than 8 bits:
            [0, 4095] for 12 bits that are stored in 16. By default 0 and 65535. Floats need it.
        class_names: the subfolders, in the order of their numbers; by default those that there are,
            in alphabetical order. A run with model.condition keeps them.
    """

    root: str
    image_size: int | Sequence[int] = 64
    channels: int = 3
    test_size: int | float = 0.1
    memory_gb: float = 1.0
    on_corrupt: str = "error"
    background: str | Sequence[int] = "white"
    value_range: Sequence[float] | None = None
    class_names: list[str] | None = None

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
        check_range(self.value_range)
        rgb(self.background)
        self._total = 0
        self._unreadable: dict[str, str] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.image_size
        return (self.channels, *((size, size) if isinstance(size, int) else size))

    @property
    def classes(self) -> int | None:  # type: ignore[override]
        """The folders in `root` that hold pictures; None where all lie beside each other."""
        names = self.label_names
        return None if names is None else len(names)

    @property
    def label_names(self) -> tuple[str, ...] | None:  # type: ignore[override]
        names = self._names(Path(self.root).expanduser())
        if not all("/" in name for name in names):
            return None
        return tuple(self.class_names or _folders(names))

    @property
    def pixels(self) -> dict[str, Any]:
        return {"background": self.background, "value_range": self.value_range}

    @property
    def _allowed(self) -> int:
        """The number of pictures that may be skipped."""
        return max(int(MAX_SKIPPED * self._total), 1) if self.on_corrupt == "skip" else 0

    def check_root(self) -> None:
        """Refuses a folder that is not there."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise _holds_none(root)

    def open(self) -> tuple[Reader, Reader]:
        pictures = self._pictures()
        test, train = self._test_rows(len(pictures))
        return pictures.subset(train), pictures.subset(test)

    def divided(self) -> dict[str, Part]:
        pictures = self._pictures()
        test, rest = self._test_rows(len(pictures))
        val, train = split_rows(len(rest), self.val_size, derive_seed(self.split_seed, "val"))
        rows = {"val": rest[val], "train": rest[train], "test": test}
        return {name: Part(pictures, some) for name, some in rows.items()}

    def _test_rows(self, total: int) -> tuple[Tensor, Tensor]:
        """Those of the test, and the others."""
        return split_rows(total, self.test_size, derive_seed(self.split_seed, "test"))

    def _pictures(self) -> "Pictures":
        self.check_root()
        root = Path(self.root).expanduser()
        names = self._names(root)
        self._total = len(names)
        self._look_at([root / name for name in names[:: -(-len(names) // LOOKED_AT)]])
        encoded = np.array([os.fsencode(name) for name in names])
        labels = _labels(names, self.class_names or _folders(names))
        return Pictures(root, encoded, labels, self.shape, self._allowed, self.pixels)

    def _names(self, root: Path) -> list[str]:
        """Paths of all pictures relative to `root`, sorted by folder; warns of hidden files."""
        files = [path.relative_to(root) for path in files_below(root)]
        hidden = [path for path in files if _is_hidden(path)]
        told = f"{len(hidden)} hidden files are left out" if hidden else ""
        found = {*files} - {*hidden}
        names = [path.as_posix() for path in found if path.name.lower().endswith(SUFFIXES)]
        if not names:
            raise _holds_none(root, told)
        if hidden:
            warnings.warn(f"{told}, such as {min(hidden)} in {root}", stacklevel=3)
        return sorted(names, key=lambda name: name.split("/"))

    def _look_at(self, paths: list[Path]) -> None:
        """Says so if these would be dark, or if none of them needs the range that was given."""
        found = [deep for path in paths if (deep := _brightest(path))]
        if self.value_range is not None and not found:
            warnings.warn(
                "data.value_range is for grey pictures with more than 8 bits: none of the "
                f"{len(paths)} that were looked at is one",
                stacklevel=3,
            )
        if self.value_range is None and found:
            most, limit = max(found)
            if 0 < most < limit / 4 < math.inf:
                warnings.warn(
                    f"the {len(found)} pictures of 16 bits that were looked at hold no value above "
                    f"{most:g} of {limit:g}, so they will be dark; type "
                    f"data.value_range=[0,{2 ** int(most).bit_length() - 1}]",
                    stacklevel=3,
                )

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
        count = (
            f"{len(self._unreadable)} of {self._total} pictures cannot be read, at most "
            f"{self._allowed} may be skipped"
        )
        if len(self._unreadable) > self._allowed:
            first, reason = next(iter(self._unreadable.items()))
            raise ValueError(f"{count} (1 % of all, or one); the first is {first} ({reason})")
        for path in new:
            reason = self._unreadable[path]
            warnings.warn(f"{path} ({reason}): the next picture stands in; {count}", stacklevel=2)


@dataclass(frozen=True)
class Pictures:
    """Picture files as a :class:`vae_lab.data.stream.Reader`.

    Args:
        root: the folder that the names start from.
        names: of the files, shape [N], bytes in one array: a list's strings would be copied into
            each process that reads, bit by bit, as their reference counts are written.
        labels: shape [N].
        shape: (C, H, W) to fit them to.
        skip: how many may be skipped; so many after an unreadable one, and one more, are tried in
            its place.
        pixels: what :func:`vae_lab.data.image_files.read` is told beside.
    """

    root: Path
    names: np.ndarray
    labels: Tensor
    shape: tuple[int, ...]
    skip: int = 0
    pixels: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: Tensor) -> "Pictures":
        return replace(self, names=self.names[rows.numpy()], labels=self.labels[rows])

    def read(self, rows: Sequence[int]) -> Rows:
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        labels = torch.empty(len(rows), dtype=torch.int64)
        unreadable: dict[str, str] = {}
        for place, row in enumerate(rows):
            images[place], labels[place] = self._read_one(int(row), unreadable)
        return Rows(images, labels, unreadable)

    def _read_one(self, row: int, unreadable: dict[str, str]) -> tuple[Tensor, Tensor]:
        tried = min(self.skip + 2, len(self)) if self.skip else 1
        for candidate in range(row, row + tried):
            number = candidate % len(self)
            path = self._path(number)
            try:
                return read(path, self.shape, **self.pixels), self.labels[number]
            except DAMAGED as error:  # few say which file it was
                unreadable[str(path)] = one_line(error)
        path = self._path(row)
        reason = unreadable[str(path)]
        if self.skip:
            raise ValueError(
                f"no picture can stand in for {path} ({reason}): {tried - 1} others of its split "
                f"were tried, at most {self.skip} may be skipped"
            )
        raise ValueError(
            f"{path} is not a readable picture ({reason}); remove it, or data.on_corrupt=skip"
        )

    def _path(self, number: int) -> Path:
        return self.root / os.fsdecode(self.names[number])


def _holds_none(root: Path, told: str = "") -> FileNotFoundError:
    kinds = " ".join(SUFFIXES)
    told = f"; {told}" if told else ""
    return FileNotFoundError(f"data.root must hold pictures ({kinds}): {contents(root)}{told}")


def _brightest(path: Path) -> tuple[float, float] | None:
    """None also of what cannot be read, which is said when it has to be."""
    try:
        return brightest(path)
    except DAMAGED:
        return None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part.lower() in SYSTEM for part in path.parts)


def _folders(names: list[str]) -> list[str]:
    return sorted({name.partition("/")[0] for name in names if "/" in name})


def _labels(names: list[str], folders: Sequence[str]) -> Tensor:
    numbers = {folder: number for number, folder in enumerate(folders)}
    if new := [folder for folder in _folders(names) if folder not in numbers]:
        raise ValueError(
            f"data.root has the folder {new[0]!r}, data.class_names={[*folders]} does not"
        )
    return torch.tensor(
        [numbers.get(name.partition("/")[0], -1) if "/" in name else -1 for name in names]
    )
