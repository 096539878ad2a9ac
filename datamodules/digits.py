"""Handwritten digits of 8 x 8 pixels that come with scikit-learn: nothing to download."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from datamodules.base import ImageDataModule, Images

NUM_TEST = 297


@dataclass(kw_only=True, eq=False)
class Digits(ImageDataModule):
    """1797 handwritten digits; the last 297 are for the test, 200 others for validation.

    Source: Alpaydin & Kaynak, *Optical Recognition of Handwritten Digits*, UCI repository,
    1998 (its test part)
    """

    val_size: int | float = 200

    shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    classes: ClassVar[int] = 10

    def load(self) -> Images:
        from sklearn.datasets import load_digits  # here, as the import takes seconds

        pixels, targets = load_digits(return_X_y=True)  # [1797, 64], values 0 .. 16
        images = torch.from_numpy(pixels).mul(255 / 16).round().byte().view(-1, *self.shape)
        labels = torch.from_numpy(targets).long()
        return Images(
            images[:-NUM_TEST], labels[:-NUM_TEST], images[-NUM_TEST:], labels[-NUM_TEST:]
        )
