"""An evaluation as a whole: its settings, what is measured in which part, and the order."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..estimators import Estimator
from ..gradients import evaluating
from ..inputs import is_picture
from ..memory import MEMORY
from ..vae import VAE
from . import bounds, columns, latents, pictures
from .diagnosis import diagnose
from .features import Features, choose
from .measurement import Labelled, Measurement, OnProgress, collect
from .results import Evaluation

TRAIN_IMAGES = 2000  # of which the ELBO is measured
CODES = 10_000  # of each split, for the classifiers
SAMPLES, GRID_SAMPLES = 5000, 32  # in the bound; on a grid one weight is all in any case
AIS_IMAGES = 100
NO_PICTURES = (
    "mse, psnr, ssim, feature_distance, fid, rfid, precision and recall, which are measured of "
    "pictures with values from 0 to 1"
)
NO_TEMPERATURE = "samples of another temperature than 1, which this model's prior does not have"
NO_ANNEALING = "annealed importance sampling, which needs z that can be any numbers, and no labels"
LEAST_IMAGES = 50  # of which FID, precision, recall and the scores of factors say anything


@dataclass(frozen=True, eq=False, kw_only=True)
class Settings:
    """Settings of an evaluation: what to measure, how exactly, and facts about run and data.

    Args:
        parts: one or several of "bound" (ELBO, the importance-weighted bound on log p(x), errors of
            reconstructions and of imputed values), "ais" (annealed importance sampling), "split"
            (what the KL is made of, active units, use of the codes), "samples" (FID, precision,
            recall, FID of reconstructions) and "latents" (classifiers, disentanglement). What the
            model or the data does not allow is left out. None: all.
        images: so many of the first; None: all.
        samples: of z for every image, in the bound. Discrete latents of no more states, and
            65,536 at most, are enumerated instead. None: 5000, on a grid 32, as there one of
            them has all the weight.
        ais_images: how many of the images have annealed importance sampling. None: 100, on a grid
            none, as it takes hours.
        ais_steps: of the annealing.
        features: in which samples are compared; see :func:`vae_lab.evaluation.features.extract`.
        temperatures: of the samples; other ones than 1 need a prior that has a temperature.
        memory: in bytes, for what is decoded at once.
        seed: of all noise.
        train: images of the training split, like those that are evaluated, for the gap between the
            two and for classifiers.
        shown: (test, train) images to compare samples with, if they differ from those that are
            evaluated and `train`; such as the grey images that binary ones were drawn from.
        factors: labels [B] -> the factors of variation [B, F] that made the images, if known.
        categorical: which of the factors are names without an order, by their column.
        estimator: that of the training, as it was then; tells how far its relaxed samples are from
            exact ones.
        known: further numbers for :func:`vae_lab.evaluation.diagnosis.diagnose`, by name.

    Raises:
        ValueError: a part is not known, or a number is too small.
    """

    parts: Collection[str] | str | None = None
    images: int | None = None
    samples: int | None = None
    ais_images: int | None = None
    ais_steps: int = 200
    features: Features | str | None = None
    temperatures: Sequence[float] = (1.0,)
    memory: float = MEMORY
    seed: int = 0
    train: Any = None
    shown: tuple[Any, Any] | None = None
    factors: Callable[[Tensor], Tensor] | None = None
    categorical: Collection[int] = ()
    estimator: Estimator | None = None
    known: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.parts, str):
            object.__setattr__(self, "parts", (self.parts,))
        if unknown := set(self.parts or ()) - set(PARTS):
            raise ValueError(
                f"parts must be some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}"
            )
        if self.images is not None and self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.ais_images is not None and self.ais_images < 0:
            raise ValueError(f"ais_images must not be negative, got {self.ais_images}")

        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(
                f"temperatures must be positive, one or more, got {[*self.temperatures]}"
            )

    def asks(self, part: str) -> bool:
        """Whether this part is to be measured."""
        return self.parts is None or part in self.parts


class Work(NamedTuple):
    """The input of the measures: the images at hand, the settings, and training images."""

    m: Measurement
    settings: Settings
    train: Labelled  # the first training images and their labels; empty where there are none


class Measure(NamedTuple):
    """Numbers that one function adds to a :class:`Measurement`.

    Attributes:
        part: that it belongs to.
        applies: do the model and the data allow it.
        add: measures and adds them.
    """

    part: str
    applies: Callable[[Work], bool]
    add: Callable[[Work], None]


def evaluate(
    vae: VAE,
    batches: Any,
    settings: Settings | None = None,
    *,
    progress: OnProgress | None = None,
    **named: Any,
) -> Evaluation:
    r"""Measures a model on the images of a split.

    The same images, settings and device give the same numbers: the noise is drawn for a batch of
    images at a time, seeded by its place in the split. Where there are several processes
    (torch.distributed), each takes its share of the batches for the bound and annealed importance
    sampling, and all return the same numbers as one alone. The noise is another with another
    `memory`, which sets the size of a batch, and in the last batch with another number of `images`.

    .. code-block:: python

        found = evaluate(vae, images.split(500), samples=1000)
        found.metrics["log_likelihood"].value

    Args:
        vae: used in evaluation mode, on its own device.
        batches: x as the model's other methods take it, an array, a tensor or a frame [N, \*X]; or
            batches, which are such x [B, \*X], or tuples that begin with x and labels [B], as
            :class:`vae_lab.data.Batch`; a label of -1 says there is none. Or a torch Dataset.
        settings: None: their defaults.
        progress: called with a part, the images done and their number.
        named: single settings by name, in the place of those in `settings`.

    Raises:
        ValueError: there are no images, or they are not those of the model.
        ImportError, FileNotFoundError: the network for `features` cannot be had.
    """
    settings = replace(settings or Settings(), **named)
    if settings.asks("samples") and is_picture(vae.shape):
        choose(settings.features)  # what it lacks is known before the rest has taken minutes
    began = time.perf_counter()
    devices = [vae.device] if vae.device.type == "cuda" else []
    with evaluating(vae):  # also what is copied of it
        work = _work(vae, batches, settings, progress or _silent)
        with torch.no_grad(), torch.random.fork_rng(devices):
            for measure in MEASURES:
                if settings.asks(measure.part) and measure.applies(work):
                    measure.add(work)
    m = work.m
    numbers = {name: metric.value for name, metric in m.metrics.items()}
    diagnosis = diagnose({**numbers, **m.numbers, **(settings.known or {})})
    seconds = time.perf_counter() - began
    left_out = [NO_PICTURES] * (not _has_pictures(work))
    left_out += [NO_TEMPERATURE] * (len(_temperatures(work)) < len(settings.temperatures))
    asks_in_vain = bool(settings.ais_images) and settings.asks("ais") and not _can_be_annealed(work)
    left_out += [NO_ANNEALING] * asks_in_vain
    return Evaluation(
        *(m.metrics, m.per_latent, m.per_place, diagnosis),
        *(len(m.x), settings.seed, seconds, left_out),
        pictures=m.pictures,
    )


def _work(vae: VAE, batches: Any, settings: Settings, progress: OnProgress) -> Work:
    x, y = collect(batches, settings.images, vae)
    m = Measurement(vae, x, y, settings.memory, settings.seed, progress)
    if settings.train is None:
        return Work(m, settings, (x[:0], y[:0]))
    # Large images would not all fit into memory.
    most = min(CODES, max(int(settings.memory / (4 * math.prod(vae.shape))), 1))
    return Work(m, settings, collect(settings.train, most, vae))


def _silent(part: str, done: int, total: int) -> None:
    """Nobody asked how far it is."""


def _always(work: Work) -> bool:
    return True


def _has_training_images(work: Work) -> bool:
    return len(work.train[0]) > 0


def _has_pictures(work: Work) -> bool:
    """Images from 0 to 1: errors of other data depend on its units, and nothing shows its samples
    to a network of images."""
    x = work.m.x
    return is_picture(work.m.vae.shape) and bool(((x >= 0) & (x <= 1)).all())


def _has_columns(work: Work) -> bool:
    return not is_picture(work.m.vae.shape)


def _can_be_imputed(work: Work) -> bool:
    return _has_columns(work) and work.m.vae.likelihood.missing and not work.m.known.infers_labels


def _has_enough_pictures(work: Work) -> bool:
    return len(work.m.x) >= LEAST_IMAGES and _has_pictures(work)


def _can_be_annealed(work: Work) -> bool:
    return _ais_images(work) > 0 and "annealed" in work.m.numbers


def _ais_images(work: Work) -> int:
    default = 0 if _is_grid(work) else AIS_IMAGES
    return default if work.settings.ais_images is None else work.settings.ais_images


def _is_grid(work: Work) -> bool:
    return work.m.vae.latent.num_places > 1


def _has_a_density_of_bytes(work: Work) -> bool:
    density = not work.m.vae.likelihood.discrete and _has_pictures(work)
    return density and bounds.are_bytes(work.m.x)


def _has_labels_only(work: Work) -> bool:
    told = work.m.vae.condition is not None and not work.m.known.infers_labels
    return work.settings.factors is None and _has_training_images(work) and not told


def _has_factors(work: Work) -> bool:
    named = work.settings.factors is not None and not _is_grid(work)  # a place stands for no factor
    return named and len(work.m.x) >= LEAST_IMAGES


def _bound(work: Work) -> None:
    bounds.bound(work.m, work.settings.samples or (GRID_SAMPLES if _is_grid(work) else SAMPLES))


def _reconstructions(work: Work) -> None:
    pictures.reconstructions(work.m)


def _column_errors(work: Work) -> None:
    columns.reconstructions(work.m)


def _imputation(work: Work) -> None:
    columns.imputation(work.m)


def _dequantized(work: Work) -> None:
    bounds.dequantized(work.m)


def _train_gap(work: Work) -> None:
    bounds.train_gap(work.m, *(part[:TRAIN_IMAGES] for part in work.train))


def _annealing(work: Work) -> None:
    bounds.annealing(work.m, _ais_images(work), work.settings.ais_steps)


def _split(work: Work) -> None:
    latents.split(work.m, work.settings.estimator)


def _quality(work: Work) -> None:
    if temperatures := _temperatures(work):
        pictures.quality(work.m, *_shown(work), work.settings.features, temperatures)


def _temperatures(work: Work) -> list[float]:
    """Those that were asked for and that the prior has."""
    return [t for t in work.settings.temperatures if t == 1 or work.m.vae.has_temperature]


def _shown(work: Work) -> tuple[Tensor, Tensor | None]:
    """Test and training images that samples are compared with."""
    settings = work.settings
    if settings.shown is None:
        return work.m.x, work.train[0] if _has_training_images(work) else None
    test, train = settings.shown
    vae = work.m.vae
    return collect(test, settings.images, vae)[0], collect(train, CODES, vae)[0]


def _infers_labels(work: Work) -> bool:
    return work.m.known.infers_labels


def _accuracy(work: Work) -> None:
    latents.accuracy(work.m)


def _classifiers(work: Work) -> None:
    latents.classifiers(work.m, work.train, CODES)


def _disentanglement(work: Work) -> None:
    if work.settings.factors is not None:
        latents.disentanglement(work.m, work.settings.factors, work.settings.categorical)


# In this order: what comes later may use what was measured before.
MEASURES = (
    Measure("bound", _always, _bound),
    Measure("bound", _has_a_density_of_bytes, _dequantized),
    Measure("bound", _has_pictures, _reconstructions),
    Measure("bound", _has_columns, _column_errors),
    Measure("bound", _can_be_imputed, _imputation),
    Measure("bound", _has_training_images, _train_gap),
    Measure("ais", _can_be_annealed, _annealing),
    Measure("split", _always, _split),
    Measure("samples", _has_enough_pictures, _quality),
    Measure("latents", _infers_labels, _accuracy),
    Measure("latents", _has_labels_only, _classifiers),
    Measure("latents", _has_factors, _disentanglement),
)
PARTS = tuple(dict.fromkeys(measure.part for measure in MEASURES))
