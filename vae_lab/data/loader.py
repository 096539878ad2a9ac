"""Deterministic batches.

The order is a pure function of (seed, epoch) and the noise of :mod:`~vae_lab.data.prepare` one of
(seed, stage, epoch, batch). Both are drawn for the batch of all ranks together, before a rank takes
its part. So nothing random has to be saved to resume in the middle of an epoch, N processes see
what one process sees, and torch's default generator is left alone. None of it depends on where the
data comes from, or on what it is.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..seeding import derive_seed
from .prepare import Noise, Pixels, Prepare


class Batch(NamedTuple):
    """One rank's part of a batch.

    Attributes:
        x: data as the model takes it, shape [B, *X]; B is zero where a short last batch leaves a
            rank nothing.
        y: labels, shape [B], int64; -1 where the data has none.
        size: number of data in the batch over all ranks.
    """

    x: Tensor
    y: Tensor
    size: int


class Loader:
    """Iterates over one epoch of batches. A subclass fetches the data.

    Args:
        shape: of one datum as it is stored; of an image (C, H, W).
        num_images: number of data in an epoch, be they images or not.
        batch_size: data in a batch over all ranks; the last batch of an epoch may be smaller.
        stage: "train" or the name of another split. Only "train" changes from epoch to epoch.
        seed: of the order and of the noise.
        shuffle: a new order in every epoch.
        prepare: makes what the model takes of what is stored. None: the data are images in bytes.
        augment: changes what is stored before `prepare` does; for training. None: nothing does.
        binarize: what is done to these images; see :class:`~vae_lab.data.prepare.Pixels`.
        rank: which part of every batch to yield.
        world_size: number of ranks that share a batch.
        device: where the batches are wanted.

    Attributes:
        labelled: the share of an epoch's data whose label is known.
    """

    labelled = 0.0
    _labelled: "_Labelled | None" = None

    def __init__(
        self,
        shape: tuple[int, ...],
        num_images: int,
        batch_size: int,
        *,
        stage: str = "train",
        seed: int = 0,
        shuffle: bool = False,
        prepare: Prepare | None = None,
        augment: Prepare | None = None,
        binarize: str = "none",
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        check_batch_size("batch_size", batch_size)
        self.shape = shape
        self.num_images = num_images
        self.batch_size = batch_size
        self.stage = stage
        self.seed = seed
        self.shuffle = shuffle
        self.prepare = prepare or Pixels(binarize)
        self.augment = augment or Prepare()
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device or "cpu")
        self.epoch = 0
        self.start = 0
        self.sampler, self.batch_sampler = self, None  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        """Batches in a whole epoch, also where the next iteration starts in its middle."""
        return math.ceil(self.num_images / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and noise of the next iteration; evaluation data is always the same."""
        if self.stage == "train" and epoch != self.epoch:
            self.start_at(epoch, 0)

    def start_at(self, epoch: int, batch: int) -> None:
        """Lets the next iteration, if it is of this epoch, begin at this batch."""
        self.epoch, self.start = epoch, batch

    def __iter__(self) -> Iterator[Batch]:
        # A generator reads the epoch at the first next(): Lightning calls iter() before set_epoch.
        epoch, start = self.epoch, self.start
        self.start = 0
        batches = self._order(epoch).split(self.batch_size)[start:]
        fetched = self._fetch([self._part(rows) for rows in batches])
        for number, (stored, labels) in enumerate(fetched):
            yield self._batch(stored, labels, len(batches[number]), epoch, start + number)

    def close(self) -> None:
        """Ends what an iteration may have left running."""

    def state_dict(self) -> dict[str, int]:
        """The settings on which a position in the epoch depends.

        The datamodule saves the position itself: the loader knows only which batches were fetched,
        not which were trained on.
        """
        return {"images": self.num_images, "batch_size": self.batch_size, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state != self.state_dict():
            raise ValueError(
                f"resuming needs the checkpoint's data, {state}, got {self.state_dict()}; restore "
                "these settings, or start a new run from the weights alone"
            )

    def _fetch(self, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Data [B, *] as it is stored and labels [B], for each tensor of row numbers [B].

        The caller may overwrite the data.
        """
        raise NotImplementedError

    def _know(self, labels: Tensor, share: float) -> None:
        """Lets at least this share of a batch have labels, [N], -1 not being one.

        Where fewer are known, an epoch has all data without a label once, and those with one again
        and again.
        """
        known = labels.cpu() >= 0
        self.labelled = known.double().mean().item()
        if 0 < self.labelled < share:
            per_batch = min(math.ceil(share * self.batch_size), self.batch_size - 1)
            self._labelled = _Labelled(known, per_batch, self.batch_size)
            self.num_images = len(self._labelled)
            self.labelled = self._labelled.drawn / self.num_images

    def _order(self, epoch: int) -> Tensor:
        if self._labelled is not None:
            return self._labelled.order(derive_seed(self.seed, "order", epoch))
        if not self.shuffle:
            return torch.arange(self.num_images)
        # On the CPU, so that the order does not depend on the device.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(self.num_images, generator=generator)

    def _part(self, rows: Tensor) -> Tensor:
        """This rank's share of a batch's rows; all ranks' shares together are the batch."""
        size, world = len(rows), self.world_size
        return rows[size * self.rank // world : size * (self.rank + 1) // world]

    def _batch(self, stored: Tensor, labels: Tensor, size: int, epoch: int, index: int) -> Batch:
        def draw(noise: Noise, name: str = "binarize") -> Tensor:
            seed = derive_seed(self.seed, name, self.stage, epoch, index)
            generator = torch.Generator(self.device).manual_seed(seed)
            return self._part(noise(size, generator))

        return Batch(self.prepare(self.augment(stored, draw), draw), labels, size)


class TensorLoader(Loader):
    """Batches from one tensor, an index and a cast each.

    Args:
        images: data as it is stored, shape [N, *]; of images [N, C, H, W], uint8. Moved to the
            device once, unless it would take more than half of its free memory.
        labels: shape [N], int64.
        labelled_share: at least this share of a batch has labels, -1 not being one. Where fewer
            are known, an epoch has all data without a label once, and those with one again and
            again.
        batch_size, settings: see :class:`Loader`; the device is the images' own by default.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        labelled_share: float = 0.0,
        **settings: Any,
    ) -> None:
        device = settings.pop("device", None) or images.device
        super().__init__(
            tuple(images.shape[1:]), len(images), batch_size, device=device, **settings
        )
        self.prepare.check(images)
        self.images = _move_if_it_fits(images, self.device)
        self.labels = labels.to(self.images.device)
        self._know(labels, labelled_share)

    def _order(self, epoch: int) -> Tensor:
        return super()._order(epoch).to(self.images.device)

    def _fetch(self, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in parts:
            # index_select takes a third of the time of images[rows].
            stored = self.images.index_select(0, rows).to(self.device)
            yield stored, self.labels.index_select(0, rows).to(self.device)


class _Labelled:
    """The order of an epoch with as many labelled data in each batch.

    Args:
        known: is the label known, [N].
        per_batch: so many of a whole batch have one.
        batch_size: of a whole batch.
    """

    def __init__(self, known: Tensor, per_batch: int, batch_size: int) -> None:
        self.known, self.others = known.nonzero().flatten(), (~known).nonzero().flatten()
        self.per_batch, self.others_per_batch = per_batch, batch_size - per_batch
        self.drawn = per_batch * math.ceil(len(self.others) / self.others_per_batch)  # labelled

    def __len__(self) -> int:
        """Number of data in an epoch."""
        return len(self.others) + self.drawn

    def order(self, seed: int) -> Tensor:
        """Row numbers, [N of the epoch]: the labelled ones come first in each batch."""
        generator = torch.Generator().manual_seed(seed)
        others = self.others[torch.randperm(len(self.others), generator=generator)]
        rounds = math.ceil(self.drawn / len(self.known))
        turns = [torch.randperm(len(self.known), generator=generator) for _ in range(rounds)]
        known = self.known[torch.cat(turns)[: self.drawn]]
        parts = zip(known.split(self.per_batch), others.split(self.others_per_batch), strict=True)
        return torch.cat([rows for pair in parts for rows in pair])


def check_batch_size(name: str, size: int) -> None:
    """Refuses what neither a loader nor a datamodule can work with."""
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")


def _move_if_it_fits(images: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return images
    return images.to(device)
