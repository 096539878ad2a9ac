"""How what is stored becomes what a model is trained on, a batch at a time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BINARIZE = ("none", "threshold", "stochastic")

Noise = Callable[[int, torch.Generator], Tensor]  # size of the whole batch -> noise [size, *]


class Draw(Protocol):
    """Gives this process's part of a noise that is drawn for the whole batch.

    The generator's state is a function of the seed, the noise's name, the stage, the epoch and the
    batch: noises of other names are independent.
    """

    def __call__(self, noise: Noise, name: str = ..., /) -> Tensor: ...


class Prepare:
    """Prepares data that is stored as the model takes it: nothing is done to it."""

    def check(self, stored: Tensor) -> None:
        """Refuses a data set [N, *] that it cannot prepare."""

    def __call__(self, stored: Tensor, draw: Draw) -> Tensor:
        """One batch as the model takes it, [B, *X].

        Args:
            stored: [B, *]; may be changed in place.
            draw: gives noise, see :class:`Draw`.
        """
        return stored


@dataclass(frozen=True)
class Pixels(Prepare):
    """Prepares images that are stored as bytes [B, C, H, W]: numbers in [0, 1].

    Args:
        binarize: "none" gives x in [0, 1], "threshold" x > 0.5, and "stochastic" a draw from
            Bernoulli(x), a new one in every epoch of training.
    """

    binarize: str = "none"

    def __post_init__(self) -> None:
        if self.binarize not in BINARIZE:
            known = ", ".join(BINARIZE)
            raise ValueError(f"binarize must be one of {known}, got {self.binarize!r}")

    def check(self, stored: Tensor) -> None:
        if stored.dtype != torch.uint8 or stored.ndim != 4:
            raise ValueError(
                "images must be uint8 with 4 axes [N, C, H, W], "
                f"got {stored.dtype} of shape {tuple(stored.shape)}"
            )

    def __call__(self, stored: Tensor, draw: Draw) -> Tensor:
        if self.binarize == "none":
            return stored.float().div_(255)
        if self.binarize == "threshold":
            return stored.gt_(127).float()

        def noise(size: int, generator: torch.Generator) -> Tensor:
            """Uniform on 0 .. 254, so that P(noise < v) = v / 255 exactly."""
            empty = stored.new_empty((size, *stored.shape[1:]))
            return empty.random_(0, 255, generator=generator)

        # In place on bytes: a cast from bool to float is five times slower.
        return draw(noise).lt_(stored).float()

    def mean(self, batches: Iterable[Tensor]) -> Tensor:
        """The mean image [C, H, W] of batches as they are stored, [B, C, H, W]; of the expectation
        of their binarisation."""
        total, count = torch.zeros((), dtype=torch.int64), 0
        for stored in batches:  # bytes, whose sums are exact
            values = stored.gt(127).mul(255) if self.binarize == "threshold" else stored
            total = total + values.sum(0, dtype=torch.int32).cpu()
            count += len(stored)
        return (total.double() / (255 * count)).float()
