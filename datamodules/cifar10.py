"""Small colour photographs, 32 x 32."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torchvision
from torch import Tensor

from datamodules.base import ImageDataModule, Images
from datamodules.folders import CACHE, all_or_nothing, contents, one_line


@dataclass(kw_only=True, eq=False)
class CIFAR10(ImageDataModule):
    """60000 photographs of ten kinds of things; 10000 are for the test, 5000 others for validation.

    torchvision reads the files: they are pickles, which may run code, and it opens them only after
    their checksum agreed with the published one.

    Args:
        root: folder that holds `cifar-10-batches-py`; by default ~/.cache/vae_lab.
        download: fetch the files where they are missing.

    Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009
    """

    val_size: int | float = 5000
    root: str | None = None
    download: bool = True

    classes: ClassVar[int] = 10
    label_names: ClassVar[tuple[str, ...]] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)

    @property
    def folder(self) -> Path:
        return Path(self.root or CACHE).expanduser()

    def prepare_data(self) -> None:
        """Downloads in one process, before `setup` reads in all."""
        if self.download:
            source = torchvision.datasets.CIFAR10
            names = (source.base_folder, source.filename)
            with all_or_nothing(*(self.folder / name for name in names)):
                self._open(download=True)

    def load(self) -> Images:
        return Images(*self._read(train=True), *self._read(train=False))

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        data = self._open(train=train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()  # [N, C, H, W]
        return images, torch.tensor(data.targets)

    def _open(self, **options: bool) -> torchvision.datasets.CIFAR10:
        try:
            return torchvision.datasets.CIFAR10(self.folder, **options)
        # The first is torchvision's for missing and damaged files, the second comes of no network.
        except (RuntimeError, OSError) as error:
            folder = self.folder / torchvision.datasets.CIFAR10.base_folder
            raise FileNotFoundError(
                f"CIFAR10 needs the intact files of cifar-10-python.tar.gz: {contents(folder)} "
                f"({one_line(error)}). Type data.root=FOLDER or data.download=true"
            ) from error
