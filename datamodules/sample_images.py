"""Crops of the two photographs that come with scikit-learn: nothing to download."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from datamodules.base import ImageDataModule, Images
from vae_lab.seeding import derive_seed

TRAIN, TEST = 800, 200  # crops
UNSEEN = 0.7  # of the width, from which on a photograph is for the test
LARGEST = 0.6  # side of a crop, in those of the photograph that it may lie in
NAMES = ("china.jpg", "flower.jpg")


@dataclass(kw_only=True, eq=False)
class SampleImages(ImageDataModule):
    """1000 square crops of a temple and of a flower, in colour, which are the two classes.

    The 800 for training, of which some are for validation, lie in the left seven tenths of a
    photograph and the 200 for the test in the rest, so no pixel is in both. Crops are of several
    sizes, drawn once by a fixed seed, and scaled to `image_size`. Two photographs are enough to
    try a recipe on, and no more.

    Source: `sklearn.datasets.load_sample_images`, photographs of 427 x 640 pixels by C. Zhao and
    V. Cummings (CC BY)

    Args:
        image_size: side of the crops, at most 96.
    """

    image_size: int = 96
    val_size: int | float = 100

    classes: ClassVar[int] = len(NAMES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.image_size <= 96:
            raise ValueError(f"image_size must be from 1 to 96, got {self.image_size}")

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        return (3, self.image_size, self.image_size)

    def load(self) -> Images:
        from sklearn.datasets import load_sample_image  # here, as the import takes seconds

        photographs = [load_sample_image(name) for name in NAMES]
        width = int(UNSEEN * photographs[0].shape[1])
        train = self._crops([one[:, :width] for one in photographs], TRAIN, "train")
        test = self._crops([one[:, width:] for one in photographs], TEST, "test")
        return Images(*train, *test)

    def _crops(
        self, photographs: Sequence[np.ndarray], count: int, split: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops [count, 3, S, S] of photographs [H, W, 3] in turn, and whose each is, [count]."""
        random = np.random.default_rng(derive_seed(0, split))
        images = np.empty((count, self.image_size, self.image_size, 3), dtype=np.uint8)
        for number in range(count):
            photograph = photographs[number % len(photographs)]
            height, width, _ = photograph.shape
            largest = max(int(LARGEST * min(height, width)), 96)
            side = int(random.integers(96, largest, endpoint=True))
            top, left = random.integers((height - side, width - side), endpoint=True)
            crop = Image.fromarray(photograph[top : top + side, left : left + side])
            images[number] = crop.resize(images.shape[1:3], Image.Resampling.LANCZOS)
        labels = torch.arange(count) % len(photographs)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels
