"""The base class of all datamodules: splits, loaders, and the position in the epoch."""

import math
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from datamodules.rows import hide_labels, keep, labels_in_memory
from vae_lab.data import Augment, Batch, Loader, Pixels, Prepare, TensorLoader, check_batch_size
from vae_lab.data.splits import check_size, split_rows
from vae_lab.data.stream import Reader, Tensors
from vae_lab.lightning import place
from vae_lab.seeding import derive_seed

VALUES = 100_000  # data of which a likelihood learns the units
MOST_VALUES = 2**28  # numbers in them


class Images(NamedTuple):
    """A data set: images [N, C, H, W] uint8, and labels [N] int64, -1 where there are none."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Part(NamedTuple):
    """Some of the data of a source: of a file, or of what else they are read from.

    Attributes:
        source: all of its data, in the order in which they lie there.
        rows: the numbers of these in it, [N]; None: all.
    """

    source: Reader
    rows: Tensor | None = None

    @property
    def data(self) -> Reader:
        return self.source if self.rows is None else self.source.subset(self.rows)

    @property
    def numbers(self) -> Tensor:
        """Of the rows in the source, [N]."""
        return torch.arange(len(self.source)) if self.rows is None else self.rows


@dataclass(kw_only=True, eq=False)
class DataModule(pl.LightningDataModule):
    """Data of any kind, the same batches in every run with the same seeds.

    A subclass gives `shape`, `open()` and, where the data is not stored as the model takes it,
    `prepare()`. Its own settings are dataclass fields, so that every datamodule lists all its
    settings in one signature. With a method `check_root()` it refuses a place without the files;
    train.py calls that before torch is imported, so it looks at no data.

    Args:
        batch_size: training examples in a step, over all ranks.
        eval_batch_size: the same for validation and test.
        val_size: validation examples, taken from the training split: a count, or a fraction below
            1.
        seed: decides the order of the examples and their noise.
        split_seed: decides which examples are for validation; it is not `seed`, so that runs with
            several seeds are compared on the same examples.
        labelled: how many of the training labels are known, equally many of each class; the others
            are -1. None: all.
    """

    batch_size: int = 128
    eval_batch_size: int = 512
    val_size: int | float = 0.1
    seed: int = 0
    split_seed: int = 0
    labelled: int | None = None

    shape: ClassVar[tuple[int, ...]]  # of what the model sees, known before any file is read
    unit: ClassVar[str] = "examples"  # what messages call them
    labelled_share = 0.0  # of a training batch; a model that infers labels sets it
    classes: ClassVar[int | None] = None  # of the labels, 0 to classes - 1; None: there are none
    label_names: ClassVar[tuple[Any, ...] | None] = None  # of the classes; None: they have none
    attributes: ClassVar[tuple[str, ...] | None] = None  # names of those that stand for labels
    factor_names: ClassVar[tuple[str, ...]] = ()  # of what `factors(y)` tells, where it is known
    categorical_factors: ClassVar[tuple[int, ...]] = ()  # which of them have no order

    def __post_init__(self) -> None:
        super().__init__()
        check_batch_size("batch_size", self.batch_size)
        check_batch_size("eval_batch_size", self.eval_batch_size)
        check_size("val_size", self.val_size)
        if self.labelled is not None and self.labelled < 1:
            raise ValueError(f"labelled must be at least 1, got {self.labelled}")
        self._splits: dict[str, Reader] = {}
        self._train_loader: Loader | None = None
        self._position = (0, 0)

    def open(self) -> tuple[Reader, Reader]:
        """The training data, with that for validation, and the test data."""
        raise NotImplementedError

    def prepare(self) -> Prepare:
        """The step that makes the model's numbers of the data as it is stored."""
        return Prepare()

    def augment(self) -> Prepare:
        """The step before it in training, which changes the data as it is stored at random."""
        return Prepare()

    def unaugmented(self) -> Self:
        """This, without augmentation: the training data to measure on."""
        return self

    def own_likelihood(self) -> dict[str, Any]:
        """The likelihood that suits the data, for a run in which none is chosen: a config."""
        return {"_target_": "vae_lab.likelihoods.Bernoulli"}

    def train_values(self, most: int = VALUES) -> Tensor:
        """Training data as a model sees it, [N, *X], at most so many, evenly over all of it."""
        return self.train_examples(most)[0]

    def train_examples(self, most: int = VALUES) -> tuple[Tensor, Tensor]:
        """As :meth:`train_values`, with their labels or attributes, [N] or [N, A]."""
        data, fit = self._splits["train"], max(MOST_VALUES // math.prod(self.shape), 1)
        rows = torch.arange(0, len(data), -(-len(data) // min(most, fit)))
        with closing(
            self._loader_of(data.subset(rows), self.eval_batch_size, prepare=self.prepare())
        ) as loader:
            x, y = zip(*((x, y) for x, y, *_ in loader), strict=True)
        return torch.cat(x), torch.cat(y)

    def divided(self) -> dict[str, Part]:
        """The splits, "val", "train" and "test", as parts of what was opened for it."""
        data, test = self.open()
        val, train = split_rows(len(data), self.val_size, derive_seed(self.split_seed, "val"))
        return {"val": Part(data, val), "train": Part(data, train), "test": Part(test)}

    def in_order(self, split: str) -> list[Part]:
        """A split in the order of its source; of "all", one source after the other."""
        parts = self.divided()
        if split != "all":
            source, rows = parts[split]
            return [Part(source, None if rows is None else rows.sort().values)]
        sources = [parts[name].source for name in ("train", "val", "test")]
        return [Part(source) for source in {id(one): one for one in sources}.values()]

    def loader_of(self, part: Part) -> Loader:
        """Batches of a part, as the test data comes in."""
        settings = {"stage": "test", "seed": self.seed, "prepare": self.prepare()}
        return self._loader_of(part.data, self.eval_batch_size, **settings)

    def whole_test(self) -> Loader:
        """The test data, all of them in this process."""
        return self.loader_of(Part(self._splits["test"]))

    def setup(self, stage: str = "fit") -> None:
        """Opens and splits the data, whatever the stage."""
        if self._splits:
            return
        parts = self.divided()
        val, test, (source, rows) = parts["val"].data, parts["test"].data, parts["train"]
        train = source if rows is None else keep(source, rows)
        self._splits = {"val": val, "train": train, "test": test}
        self._check_counts()
        self._hide_labels()

    def _hide_labels(self) -> None:
        if self.labelled is not None:
            seed = derive_seed(self.split_seed, "labelled")
            self._splits["train"] = hide_labels(self._splits["train"], self.labelled, seed)

    def train_labels(self) -> Tensor:
        """The labels or attributes of the training data, [N] or [N, A]."""
        return labels_in_memory(self._splits["train"])

    def _check_counts(self) -> None:
        train, val, test = (len(self._splits[name]) for name in ("train", "val", "test"))
        if train < self.batch_size or not val or not test:
            raise ValueError(
                f"one batch needs {self.batch_size} training {self.unit}, and validation and test "
                f"need 1 each, got {train}, {val} and {test}; {self._advice(train, val, test)}"
            )

    def _advice(self, train: int, val: int, test: int) -> str:
        """What to type where there are so few; the batch leaves four of them to an epoch."""
        typed = [
            f"data.{name}_size=1" for name, count in (("val", val), ("test", test)) if not count
        ]
        left = train - len(typed)
        if left > 0:
            if left < self.batch_size:
                typed.append(f"data.batch_size={2 ** int(math.log2(max(left // 4, 1)))}")
            return f"type {' '.join(typed)}"
        if train + val + test < 3:
            return f"more {self.unit} are needed"
        return f"lower data.{'val' if val > test else 'test'}_size"

    def train_dataloader(self) -> Loader:
        # overfit_batches means the same examples in every epoch, and only reorders DataLoaders.
        overfit = bool(self.trainer and self.trainer.overfit_batches)
        self._train_loader = self._loader("train", self.batch_size, shuffle=not overfit)
        self._train_loader.start_at(*self._position)
        self._train_loader.sampler = self
        self._position = (0, 0)
        return self._train_loader

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this as the training sampler's, before every epoch.

        Its argument is one too high in a run with `max_steps` that was resumed from the end of an
        epoch; `current_epoch` is right. A trainer that was given the loader alone has only that.
        """
        self._train_loader.set_epoch(self.trainer.current_epoch if self.trainer else epoch)

    def val_dataloader(self) -> Loader:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> Loader:
        return self._loader("test", self.eval_batch_size)

    def _loader(self, stage: str, batch_size: int, shuffle: bool = False) -> Loader:
        trainer = self.trainer
        share = self.labelled_share if stage == "train" else 0.0
        return self._loader_of(
            self._splits[stage],
            batch_size,
            **({"labelled_share": share} if share else {}),
            stage=stage,
            seed=self.seed,
            shuffle=shuffle,
            prepare=self.prepare(),
            augment=self.augment() if stage == "train" else None,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=trainer.strategy.root_device if trainer else None,
        )

    def _loader_of(self, data: Reader, batch_size: int, **settings: Any) -> Loader:
        return TensorLoader(data.images, data.labels, batch_size, **settings)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leaves a batch alone that was made on its device."""
        if isinstance(batch, Batch) and batch.x.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """The position of training: [epoch, batches done, True if these were all of the epoch]."""
        if self._train_loader is None:
            return {}
        done, begun, last = place(self.trainer)
        complete = last and done == begun  # it is the last already while it is being trained on
        return {"position": [self._train_loader.epoch, done, complete]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next training loader start at a saved position; other stages ignore it."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            epoch, done, complete = state["position"]
            self._position = (epoch + 1, 0) if complete else (epoch, done)
            if self._train_loader is not None:  # a sharded model is restored after it was made
                self._train_loader.start_at(*self._position)


@dataclass(kw_only=True, eq=False)
class ImageDataModule(DataModule):
    """Images, which are stored as bytes.

    A subclass gives `shape` and `load()`.

    Args:
        batch_size: training images in a step, over all ranks.
        eval_batch_size: the same for validation and test.
        binarize: "none", "threshold" (x > 0.5) or "stochastic" (Bernoulli(x); a new draw in every
            epoch of training, always the same one in evaluation).
        flip: mirror each training image, left to right, with probability one half; another draw in
            every epoch.
        crop: train on a random part of each image, scaled to its size, with sides from this
            fraction, such as 0.8, to all of the image's; another draw in every epoch.
        val_size: validation images, taken from the training split: a count, or a fraction below 1.
        seed: decides the order of the images, the binarisation, flips and crops.
        split_seed: decides which images are for validation; it is not `seed`, so that runs with
            several seeds are compared on the same images.
        labelled: how many of the training labels are known, equally many of each class; the others
            are -1. None: all.
    """

    binarize: str = "none"
    flip: bool = False
    crop: float | None = None

    shape: ClassVar[tuple[int, int, int]]  # (C, H, W)
    unit = "images"
    mean_of: ClassVar[int | None] = None  # images of which `train_mean` is the mean; None: all

    def __post_init__(self) -> None:
        super().__post_init__()
        Pixels(self.binarize), Augment(self.flip, self.crop)  # refuse other values

    @property
    def pixels(self) -> dict[str, Any]:
        """Arguments of :func:`vae_lab.data.image_files.read` for a picture like these."""
        return {}

    def load(self) -> Images:
        """Reads the whole data set; called once in every process, which then owns the tensors."""
        raise NotImplementedError

    def open(self) -> tuple[Reader, Reader]:
        images = self.load()
        _check_images("train", images.train, self.shape)
        _check_images("test", images.test, self.shape)
        train = Tensors(images.train, images.train_labels)
        return train, Tensors(images.test, images.test_labels)

    def prepare(self) -> Pixels:
        return Pixels(self.binarize)

    def augment(self) -> Augment:
        return Augment(self.flip, self.crop)

    def unaugmented(self) -> Self:
        plain = copy(self)
        plain.flip, plain.crop = False, None
        return plain

    def train_mean(self, most: int | None = None) -> Tensor:
        """Mean training image, shape [C, H, W], of the expectation of its binarisation.

        It is that of the images as they are stored, without augmentation.

        Args:
            most: how many are looked at, evenly over all of them; None: as many as suits the data.
        """
        data, most = self._splits["train"], most or self.mean_of
        images = data.subset(torch.arange(0, len(data), -(-len(data) // most))) if most else data
        loader = self._loader_of(images, self.eval_batch_size, prepare=Prepare())
        with closing(loader):
            return self.prepare().mean(stored for stored, *_ in loader)


def _check_images(split: str, images: Tensor, shape: tuple[int, int, int]) -> None:
    """Refuses what `load` may have got wrong, above all values that would train silently."""
    if images.is_floating_point() and not images.isfinite().all():
        index = (~images.isfinite()).nonzero()[0].tolist()
        value = images[tuple(index)].item()
        raise ValueError(
            f"the {split} images must be finite, the first that is not: {index} is {value}"
        )
    if images.dtype != torch.uint8:
        raise ValueError(
            f"the {split} images must be bytes, 0 to 255 (uint8), got {images.dtype} from "
            f"{images.min().item():g} to {images.max().item():g}"
        )
    if images.shape[1:] != shape:
        raise ValueError(
            f"the {split} images must have the shape {shape} that the datamodule states, got "
            f"{tuple(images.shape[1:])}"
        )
