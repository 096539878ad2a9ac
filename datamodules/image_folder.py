"""Any folder of pictures."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import ImageDataModule, Images, check_size, contents, split
from vae_lab.seeding import derive_seed

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}
MAX_SKIPPED = 0.01  # of all pictures; above it the folder is at fault, not a file


@dataclass(kw_only=True, eq=False)
class ImageFolder(ImageDataModule):
    """All pictures below a folder, decoded once and kept in memory as bytes.

    A picture is scaled until its shorter side fits, and its middle is cut out. Its label is the
    number of the subfolder of `root` that holds it, in alphabetical order, and -1 for a picture in
    `root` itself. The test and validation images are drawn by `split_seed`.

    Args:
        root: the folder; searched with all its subfolders.
        image_size: of the square to cut out, or [height, width].
        channels: 1 for grey, 3 for colour.
        test_size: a count, or a fraction below 1 of all pictures.
        on_corrupt: "error" stops at a file that cannot be decoded; "skip" leaves such files out and
            says how many there were, but more than 1 % of all is an error still.
    """

    root: str
    image_size: int | Sequence[int] = 64
    channels: int = 3
    test_size: int | float = 0.1
    on_corrupt: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in MODES:
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.on_corrupt not in ("error", "skip"):
            raise ValueError(f"on_corrupt must be error or skip, got {self.on_corrupt!r}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"image_size must be a side or [height, width], got {self.image_size}")
        check_size("test_size", self.test_size)

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.image_size
        return (self.channels, *((size, size) if isinstance(size, int) else size))

    def load(self) -> Images:
        root = Path(self.root).expanduser()
        paths = sorted(path for path in root.rglob("*") if _is_picture(path))
        if not paths:
            raise FileNotFoundError(
                f"data.root must hold pictures ({' '.join(SUFFIXES)}): {contents(root)}"
            )
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
            pictures = dict(zip(paths, pool.map(self._read, paths), strict=True))
        self._report([path for path, picture in pictures.items() if picture is None], len(paths))
        kept = [path for path, picture in pictures.items() if picture is not None]
        images = torch.stack([pictures[path] for path in kept])
        labels = _labels(kept, root)
        test, train = split(len(kept), self.test_size, derive_seed(self.split_seed, "test"))
        return Images(images[train], labels[train], images[test], labels[test])

    def _read(self, path: Path) -> Tensor | None:
        """The picture as bytes, shape [C, H, W]; None for a corrupted one that may be skipped."""
        channels, height, width = self.shape
        try:
            with Image.open(path) as picture:
                if picture.mode[0] in "IF":  # Pillow would clip these to white
                    raise ValueError("more than 8 bits a channel")
                picture = ImageOps.exif_transpose(picture).convert(MODES[channels])
                picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        # Pillow's decoders raise all of these, and few say which file it was.
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            if self.on_corrupt == "skip":
                return None
            raise ValueError(
                f"{path} is not a readable picture ({error}); remove it, or data.on_corrupt=skip"
            ) from error
        pixels = torch.from_numpy(np.array(picture)).view(height, width, channels)
        return pixels.permute(2, 0, 1).contiguous()

    def _report(self, skipped: Sequence[Path], total: int) -> None:
        if not skipped:
            return
        message = f"{len(skipped)} of {total} pictures cannot be read, the first is {skipped[0]}"
        if len(skipped) > MAX_SKIPPED * total:
            raise ValueError(f"{message}; more than {MAX_SKIPPED:.0%} is too many to skip")
        rank_zero_warn(f"{message}; they are skipped")


def _is_picture(path: Path) -> bool:
    # macOS leaves a hidden "._name.jpg" beside a picture.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _labels(paths: Iterable[Path], root: Path) -> Tensor:
    parts = [path.relative_to(root).parts for path in paths]
    names = sorted({part[0] for part in parts if len(part) > 1})
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[part[0]] if len(part) > 1 else -1 for part in parts])
