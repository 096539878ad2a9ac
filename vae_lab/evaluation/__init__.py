"""What a trained model is worth, in numbers that can be believed.

:func:`evaluate` puts together what the modules here measure, each of which can be used alone:

* :mod:`~vae_lab.evaluation.evidence`: log p(x), by importance weighting, annealed importance
  sampling and enumeration;
* :mod:`~vae_lab.evaluation.decomposition`: what the KL is made of, and how much of z is in use;
* :mod:`~vae_lab.evaluation.samples`: FID, precision and recall of samples;
* :mod:`~vae_lab.evaluation.representation`: what a classifier can do with the codes;
* :mod:`~vae_lab.evaluation.disentanglement`: whether single codes stand for single factors;
* :mod:`~vae_lab.evaluation.diagnosis`: what is wrong, and what to type.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..estimators import Estimator
from ..vae import VAE
from . import parts as measure
from .diagnosis import Diagnosis, diagnose
from .evidence import MEMORY, can_anneal
from .features import Features, choose
from .measurement import Measurement, Progress, collect
from .results import Evaluation, Metric

__all__ = ["PARTS", "Diagnosis", "Evaluation", "Metric", "Progress", "evaluate"]

PARTS = ("bound", "ais", "split", "samples", "latents")
TRAIN_IMAGES = 2000  # of which the ELBO is measured
CODES = 10_000  # of each split, for the classifiers
LEAST_IMAGES = 50  # of which FID, precision, recall and the scores of factors say anything


def evaluate(
    vae: VAE,
    batches: Iterable[Any],
    *,
    train: Iterable[Any] | None = None,
    shown: tuple[Iterable[Any], Iterable[Any]] | None = None,
    factors: Callable[[Tensor], Tensor] | None = None,
    categorical: Collection[int] = (),
    estimator: Estimator | None = None,
    known: Mapping[str, float] | None = None,
    parts: Collection[str] = PARTS,
    images: int | None = None,
    samples: int = 5000,
    ais_images: int = 100,
    ais_steps: int = 200,
    features: Features | str | None = None,
    memory: float = MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures a model on the images of a split.

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
        batches: tensors x [B, C, H, W] with values in [0, 1], or tuples that begin with x and
            labels [B], such as :class:`vae_lab.data.Batch`; a label of -1 says there is none.
        train: likewise of the training split, for the gap between the two and for classifiers.
        shown: the images of `batches` and those of `train` to compare samples with, where it is not
            they; such as the grey images that binary ones were drawn from.
        factors: labels [B] -> the factors of variation [B, F] that made the images, if known.
        categorical: which of the factors are names without an order, by their column.
        estimator: that of the training, as it was then; tells how far its relaxed samples are from
            exact ones.
        known: further numbers for :func:`vae_lab.evaluation.diagnosis.diagnose`, by name.
        parts: "bound" (ELBO and the importance-weighted bound on log p(x)), "ais" (annealed
            importance sampling), "split" (what the KL is made of, active units, use of the
            codes), "samples" (FID, precision, recall) and "latents" (classifiers, disentanglement).
            What the model or the data does not allow is left out.
        images: so many of the first; None: all.
        samples: of z for every image, in the bound. Discrete latents of no more states, and
            65,536 at most, are enumerated instead.
        ais_images: how many of the images have annealed importance sampling.
        ais_steps: of the annealing.
        features: in which samples are compared; see :func:`vae_lab.evaluation.features.extract`.
        memory: in bytes, for what is decoded at once.
        progress: called with a part, the images done and their number.

    Raises:
        ValueError: there are no images, or they are not those of the model.
        ImportError, FileNotFoundError: the network for `features` cannot be had.
    """
    _check(parts, images, samples, ais_images)
    if "samples" in parts:
        choose(features)  # what it lacks is known before the rest has taken minutes
    began, training = time.perf_counter(), vae.training
    x, y = collect(batches, images)
    if tuple(x.shape[1:]) != vae.shape:
        raise ValueError(f"the model's images are {vae.shape}, got {tuple(x.shape[1:])}")
    if vae.prior is not None:
        raise ValueError("evaluate measures KLs to the latent's own prior, this model has another")
    m = Measurement(vae.eval(), x, y, memory, seed, progress or _silent)
    others = None if train is None else collect(train, CODES)
    devices = [m.device] if m.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            if "bound" in parts:
                measure.bound(m, samples)
                if others is not None:
                    measure.train_gap(m, others[0][:TRAIN_IMAGES])
            if "ais" in parts and ais_images and can_anneal(vae.latent):
                measure.annealing(m, ais_images, ais_steps)
            if "split" in parts:
                measure.split(m, estimator)
            if "samples" in parts and len(x) >= LEAST_IMAGES:
                measure.quality(m, *_shown(x, others, shown, images), features)
            if "latents" in parts and factors is None and others is not None:
                measure.classifiers(m, others, CODES)
            if "latents" in parts and factors is not None and len(x) >= LEAST_IMAGES:
                measure.disentanglement(m, factors, categorical)
    finally:
        vae.train(training)
    measured = {name: metric.value for name, metric in m.metrics.items()}
    diagnosis = diagnose({**measured, **m.numbers, **(known or {})})
    seconds = time.perf_counter() - began
    return Evaluation(m.metrics, m.per_latent, diagnosis, len(x), seed, seconds)


def _silent(part: str, done: int, total: int) -> None:
    """Nobody asked how far it is."""


def _shown(
    x: Tensor,
    others: tuple[Tensor, Tensor] | None,
    shown: tuple[Iterable[Any], Iterable[Any]] | None,
    images: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Test and training images that samples are compared with."""
    if shown is None:
        return x, None if others is None else others[0]
    return collect(shown[0], images)[0], collect(shown[1], CODES)[0]


def _check(parts: Collection[str], images: int | None, samples: int, ais_images: int) -> None:
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    if images is not None and images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if ais_images < 0:
        raise ValueError(f"ais_images must not be negative, got {ais_images}")
