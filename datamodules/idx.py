"""MNIST and the sets that share its file format, read from disk without torchvision's layout."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.base import ImageDataModule, Images
from datamodules.folders import CACHE, all_or_nothing, contents, one_line

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx(path: Path, axes: int) -> Tensor:
    """The bytes of an IDX file, plain or gzipped, shape as the file says.

    Format: two zero bytes, 8 for unsigned bytes, the number of axes; the lengths of the axes as
    big-endian 32-bit integers; the data.
    """
    start = 4 + 4 * axes
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            head = file.read(start)
            if len(head) < start or head[:4] != bytes((0, 0, 8, axes)):
                begin = [*head[:4]]
                raise ValueError(f"{path} must begin with the bytes 0 0 8 {axes}, got {begin}")
            shape = struct.unpack(f">{axes}I", head[4:])
            data = torch.empty(math.prod(shape), dtype=torch.uint8)
            count = file.readinto(data.numpy())  # straight into place: one copy of a large set
            count += len(file.read())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if count != len(data):
        raise ValueError(f"{path} must hold {shape} bytes of data, got {count}")
    return data.view(shape)


@dataclass(kw_only=True, eq=False)
class IdxDataModule(ImageDataModule):
    """Base of the sets that come as four IDX files of 28 x 28 images.

    Args:
        root: folder of the files; by default the system's package, then ~/.cache/vae_lab.
        download: fetch the files, into `root` or ~/.cache/vae_lab, where they are missing.
    """

    val_size: int | float = 10_000
    root: str | None = None
    download: bool = True

    classes: ClassVar[int] = 10
    shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    source: ClassVar[type]  # the torchvision class that downloads
    system: ClassVar[tuple[Path, ...]] = ()  # where a Linux distribution puts the files
    hint: ClassVar[str] = ""

    @property
    def folders(self) -> list[Path]:
        """The folders in which the files are searched for, in this order."""
        base = self._download_folder
        downloaded = [base, base / self.source.__name__ / "raw"]
        return downloaded if self.root else [*self.system, *downloaded]

    @property
    def _download_folder(self) -> Path:
        return Path(self.root or CACHE).expanduser()

    def check_root(self) -> None:
        """Refuses a folder without the files, where none are to be fetched."""
        if not self.download and self._find() is None:
            raise FileNotFoundError(self._missing())

    def prepare_data(self) -> None:
        """Downloads in one process, before `setup` reads in all."""
        self.check_root()
        if self.download and self._find() is None:
            files = [self.folders[-1] / f"{name}{end}" for name in NAMES for end in ("", ".gz")]
            try:
                with all_or_nothing(*files):
                    self.source(self._download_folder, download=True)
            except (RuntimeError, OSError) as error:
                raise FileNotFoundError(f"{self._missing()} ({one_line(error)})") from error

    def load(self) -> Images:
        paths = self._find()
        if paths is None:
            raise FileNotFoundError(self._missing())
        return Images(*self._read(paths[:2]), *self._read(paths[2:]))

    def _find(self) -> list[Path] | None:
        for folder in self.folders:
            found = [_plain_or_gzipped(folder / name) for name in NAMES]
            if all(found):
                return found
        return None

    def _missing(self) -> str:
        seen = "; ".join(contents(folder) for folder in self.folders)
        return (
            f"{type(self).__name__} needs {', '.join(NAMES)} (or .gz) in one folder, but {seen}. "
            f"Type {self.hint}data.root=FOLDER or data.download=true"
        )

    def _read(self, paths: list[Path]) -> tuple[Tensor, Tensor]:
        images, labels = read_idx(paths[0], axes=3), read_idx(paths[1], axes=1)
        if images.shape[1:] != self.shape[1:] or len(images) != len(labels):
            raise ValueError(
                f"{paths[0]} must hold {len(labels)} images of {self.shape[1:]}, as many as "
                f"{paths[1].name} has labels, got shape {tuple(images.shape)}; pictures of any "
                "size are for data=image_folder, which fits them to data.image_size"
            )
        return images.unsqueeze(1), labels.long()


def _plain_or_gzipped(path: Path) -> Path | None:
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
