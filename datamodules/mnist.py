"""Handwritten digits, 28 x 28."""

from dataclasses import dataclass
from typing import ClassVar

import torchvision

from datamodules.idx import IdxDataModule


@dataclass(kw_only=True, eq=False)
class MNIST(IdxDataModule):
    """70000 handwritten digits; 10000 are for the test, 10000 others for validation.

    Source: LeCun, Bottou, Bengio & Haffner, *Gradient-Based Learning Applied to Document
    Recognition*, Proceedings of the IEEE 86(11), 1998
    """

    source: ClassVar[type] = torchvision.datasets.MNIST
