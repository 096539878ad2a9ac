"""The base class of the data sets that need not fit in memory."""

from dataclasses import dataclass
from typing import Any, ClassVar

from datamodules.base import ImageDataModule
from vae_lab.data import Loader
from vae_lab.data.stream import Reader, StreamLoader, Tensors


@dataclass(kw_only=True, eq=False)
class StreamedDataModule(ImageDataModule):
    """Images that are read when they are needed, by processes of their own.

    A subclass gives `shape` and `open()`. The batches are, to the bit, those that the same images
    would give in memory: order, noise, the ranks' parts and the place to resume at do not depend
    on who reads.

    Args:
        num_workers: processes that read for each of the loaders for training, validation and test;
            no more than there are cores. With 0 the process that trains reads.
    """

    num_workers: int = 4

    mean_of: ClassVar[int | None] = 4096  # to read all of a large set takes as long as an epoch

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")
        self._loaders: list[StreamLoader] = []

    def teardown(self, stage: str) -> None:
        """Ends the processes that read."""
        while self._loaders:
            self._loaders.pop().close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")

    def report(self, unreadable: dict[str, str]) -> None:
        """Receives the unreadable files that others stood in for, with the reasons; may raise."""

    def _loader_of(self, images: Reader, batch_size: int, **settings: Any) -> Loader:
        if isinstance(images, Tensors):
            return super()._loader_of(images, batch_size, **settings)
        settings |= {"num_workers": self.num_workers, "report": self.report}
        loader = StreamLoader(images, batch_size, **settings)
        self._loaders.append(loader)
        return loader
