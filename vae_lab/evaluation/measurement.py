"""A model and the images of a split, and what has been measured of them so far."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.tables import is_named
from ..distributed import all_sum, rank, world_size
from ..inputs import as_numbers
from ..memory import encoded_at_once, images_at_once, in_parts
from ..seeding import derive_seed, seed_generators
from ..vae import VAE
from .diagnosis import facts
from .results import Metric

BATCH = 100  # images that share the noise of one seed

Labelled = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]
OnProgress = Callable[[str, int, int], None]  # a part, images done, of how many
Rule = Callable[[VAE, Tensor], tuple[Tensor, ...]]  # given y, x [B, C, H, W] -> some [B]


class Measurement:
    """Collects metrics.

    Args:
        vae: in evaluation mode.
        x: images, [N, C, H, W], on the CPU.
        y: their labels, [N]; -1 where there are none.
        memory: in bytes, for what is decoded at once.
        seed: of all noise.
        progress: is told how far a part is.

    Attributes:
        known: the model, given what it may know of y: labels that it infers are still latent
            variables.
        metrics: so far.
        per_latent: likewise, lists of L numbers, on a grid of those of a place.
        per_place: likewise, h rows of w numbers.
        numbers: what else the diagnosis asks for.
        each: terms of every image, [N].
        pictures: images by the name of a picture, [rows, columns, C, H, W].
    """

    def __init__(
        self, vae: VAE, x: Tensor, y: Tensor, memory: float, seed: int, progress: OnProgress
    ) -> None:
        self.vae, self.x, self.y = vae, x, y
        self.known = vae.given(vae.own_y(y))
        self.memory, self.seed, self.progress = memory, seed, progress
        self.metrics: dict[str, Metric] = {}
        self.per_latent: dict[str, list[float]] = {}
        self.per_place: dict[str, list[list[float]]] = {}
        self.numbers: dict[str, float] = facts(vae)
        self.each: dict[str, Tensor] = {}
        self.pictures: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.vae.device

    def measure(
        self,
        part: str,
        vae: VAE,
        x: Tensor,
        terms: Rule,
        names: tuple[str, ...],
        batch: int | None = None,
    ) -> None:
        """Terms of every image by name, of which the processes take the batches in turn.

        Args:
            vae: given y of all the images.

        The noise depends on the part, on a batch's place and on its size, not on who takes it.
        """
        batch = batch or self.batch()
        # Where the processes meet; float64, as sums of many float32 round.
        place = self.device if world_size() > 1 else torch.device("cpu")
        found = torch.zeros(len(names), len(x), dtype=torch.float64, device=place)
        self.progress(part, 0, len(x))
        for number, start in enumerate(range(0, len(x), batch)):
            end = min(start + batch, len(x))
            if number % world_size() == rank():
                self.draw_anew(part, start)
                some = terms(vae.rows(slice(start, end)), x[start:end].to(self.device))
                found[:, start:end] = torch.stack(some).to(found)
            self.progress(part, end, len(x))
        self.each |= dict(zip(names, all_sum(found).cpu(), strict=True))

    def batch(self, most: int = BATCH, decoded: int = 1, graph: bool = False) -> int:
        """Number of images in a batch, if `decoded` are decoded for each, maybe for a gradient."""
        at_once = images_at_once(self.vae, self.memory, graph)
        return max(min(most, at_once // decoded, encoded_at_once(self.vae, self.memory)), 1)

    def draw_anew(self, *parts: int | str) -> None:
        """Seeds what comes next, whatever has been before it."""
        seed_generators(derive_seed(self.seed, "evaluate", *parts))

    def mean(self, name: str, unit: str = "", note: str = "") -> None:
        """The mean of a term over the images, as a metric with its standard error."""
        values = self.each[name]
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
        self.add(name, values.mean().item(), error, unit, note)

    def add(
        self,
        name: str,
        value: float,
        standard_error: float | None = None,
        unit: str = "",
        note: str = "",
    ) -> None:
        """Notes a metric."""
        self.metrics[name] = Metric(value, standard_error, unit, note)

    @cached_property
    def settled(self) -> VAE:
        """The model, given y, also where it has to infer it."""
        return self.vae.of_data(self.x, self.y)

    def codes(self, vae: VAE, x: Tensor) -> Tensor:
        """The posteriors' means, of categories all probabilities, [N, D]; on the CPU.

        On a grid it is their mean over the places.
        """
        places = self.vae.latent.grid
        means = self._means(vae, x)
        pooled = [m.flatten(1, len(places)).mean(1) if places else m for m in means]
        return torch.cat(pooled).flatten(1)

    def variables(self, vae: VAE, x: Tensor) -> Tensor:
        """One code for each latent variable, [N, L]: the posterior's mean, or of categories the
        number of the most probable."""
        return self.vae.latent.numbers(torch.cat(list(self._means(vae, x))))

    def _means(self, vae: VAE, x: Tensor) -> Iterator[Tensor]:
        for part, some in in_parts(vae, x, min(BATCH, encoded_at_once(vae, self.memory))):
            yield part.encode(some).mean.float().cpu()


def collect(batches: Any, most: int | None, vae: VAE | None = None) -> Labelled:
    """The first images and their labels, -1 where there are none; on the CPU.

    Args:
        batches: tensors [B, C, H, W], or tuples that begin with such a tensor and maybe have labels
            [B]; or one such tensor, or a torch Dataset.
        vae: what it takes may be in the place of a tensor: an array, or a frame.

    Raises:
        ValueError: there are no images, or they are not those of the model.
    """
    if isinstance(batches, Tensor | np.ndarray) or is_named(batches):
        batches = [batches]
    elif isinstance(batches, Dataset):
        batches = DataLoader(batches, BATCH)
    if not isinstance(batches, Iterable):
        kinds = "a tensor, an array, a frame, a Dataset or batches of them"
        raise ValueError(f"images must be {kinds}, got {type(batches).__name__}")
    xs, ys, count = [], [], 0
    for batch in batches:
        x, *labels = batch if isinstance(batch, tuple | list) else (batch,)
        if vae is not None:
            x = vae.as_data(x.to(vae.device) if isinstance(x, Tensor) else x)
        y = labels[0] if labels else None
        if y is None:
            y = torch.full((len(x),), -1)
        elif not isinstance(y, Tensor):
            y = torch.from_numpy(as_numbers("y", y))
        xs.append(x.cpu())
        ys.append(y.cpu())
        count += len(x)
        if most is not None and count >= most:
            break
    if not count:
        raise ValueError("an evaluation needs images, got none")
    return torch.cat(xs)[:most], torch.cat(ys)[:most]
