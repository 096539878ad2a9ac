"""Pictures of clothes in MNIST's format, harder than digits."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torchvision

from datamodules.idx import IdxDataModule


@dataclass(kw_only=True, eq=False)
class FashionMNIST(IdxDataModule):
    """70000 pieces of clothing of ten kinds; 10000 are for the test, 10000 others for validation.

    Debian and Ubuntu package the files, so this set needs no download there.

    Source: Xiao, Rasul & Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
    Learning Algorithms*, 2017, arXiv:1708.07747
    """

    label_names: ClassVar[tuple[str, ...]] = tuple(torchvision.datasets.FashionMNIST.classes)
    source: ClassVar[type] = torchvision.datasets.FashionMNIST
    system: ClassVar[tuple[Path, ...]] = (Path("/usr/share/datasets/fashion-mnist"),)
    hint: ClassVar[str] = "apt-get install dataset-fashion-mnist, or "
