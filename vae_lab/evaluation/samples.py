"""Do the images that a model makes look like those of the data, and do they cover them?

Both are asked of features: see :mod:`vae_lab.evaluation.features`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..memory import MEMORY, encoded_at_once, images_at_once, in_parts
from ..vae import VAE
from .features import Features, extract

NEIGHBOURS = 3
BATCH = 500  # images made at a time
ROWS = 1 << 20  # distances that are in memory at once: more leave the cache


class Coverage(NamedTuple):
    """The result of :func:`precision_recall`."""

    precision: float
    recall: float


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Frechet's distance, squared, of two Gaussians with the moments of a [N, F] and b [M, F].

    .. math:: \|\mu_a - \mu_b\|^2
              + \operatorname{tr}\big(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2}\big)

    In double precision; the last trace is the sum of the singular values of
    :math:`\Sigma_a^{1/2} \Sigma_b^{1/2}`, which also exist with fewer images than features. It is
    biased upwards, by about 1/N: compare numbers of the same N only.

    Source: Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium*, 2017, arXiv:1706.08500
    """
    _check(a, b, least=2)
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    spread = root_a.square().sum() + root_b.square().sum()  # the traces, as the roots are symmetric
    overlap = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = (mean_a - mean_b).square().sum() + spread - 2 * overlap
    return max(distance.item(), 0.0)  # rounding may leave -1e-12 of two equal sets


def precision_recall(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> Coverage:
    """Precision and recall of generated images: how real they look, and how much of the real ones
    they reach.

    A set covers the balls around its points that reach to their k-th nearest neighbour in the set.
    Precision is the fraction of `generated` that `real` covers, recall that of `real` which
    `generated` covers. Both depend on the number of points: give as many of each.

    Args:
        real: features, shape [N, F].
        generated: features, shape [M, F].
        k: 3 in the paper.

    Source: Kynkaanniemi et al., *Improved Precision and Recall Metric for Assessing Generative
    Models*, 2019, arXiv:1904.06991
    """
    _check(real, generated, least=k + 1)
    real, generated = (x.detach().cpu().double() for x in (real, generated))
    return Coverage(_covered(generated, real, k), _covered(real, generated, k))


@torch.no_grad()
def sample_quality(
    vae: VAE,
    images: Tensor,
    num_samples: int = 10_000,
    features: Features | str | None = None,
    train_images: Tensor | None = None,
    memory: float = MEMORY,
    temperatures: Sequence[float] = (1.0,),
) -> dict[str, float]:
    """FID, precision and recall of prior samples against images.

    The samples are mean images E[x|z] of draws z from the prior, as :meth:`VAE.sample` gives
    them, without the pixels' own noise. Give the images as grey values also where the model was
    trained on stochastic draws of them: these grey values are what its means estimate.

    Args:
        vae: in evaluation mode.
        images: of the test split, in [0, 1], shape [N, C, H, W].
        num_samples: of both kinds; all images where there are fewer. The first ones are taken.
        features: see :func:`vae_lab.evaluation.features.extract`.
        train_images: others of the data, shape [M, C, H, W], for `fid_floor`, where there are as
            many as samples, and for `nearest_train`.
        memory: in bytes, roughly, for what is decoded at once.
        temperatures: of the samples, each with numbers of its own.

    Returns:
        `fid`, `precision`, `recall`, and `fid_floor`: the FID of as many training images, below
        which a model is hardly better than the data. `nearest_train`: how far samples are from
        their nearest training image, in units of what images of the test split are; near 0 they
        are copies. At another temperature than 1 the names end in it, as `fid_at_0.7`.
    """
    count = min(num_samples, len(images))
    device = vae.device
    batch = min(BATCH, images_at_once(vae, memory))

    def extracted(images: Tensor) -> Tensor:
        return torch.cat([extract(x.to(device), features) for x in images.split(batch)])

    real = extracted(images[:count])
    quality: dict[str, float] = {}
    train = real[:0] if train_images is None else extracted(train_images)
    for temperature in temperatures:
        parts = in_parts(vae, images[:count], batch)
        drawn = (part.sample(len(x), temperature=temperature) for part, x in parts)
        found = torch.cat([extract(x, features) for x in drawn])
        at = "" if temperature == 1 else f"_at_{temperature:g}"
        coverage = precision_recall(real, found)._asdict()
        named = {"fid": frechet_distance(real, found), **coverage}
        if len(train):
            distances = (nearest(x, train).values.mean() for x in (found, real))
            named["nearest_train"] = torch.div(*distances).item()
        quality |= {name + at: value for name, value in named.items()}
    if len(train) >= max(count, 1):
        quality["fid_floor"] = frechet_distance(real, train[:count])
    return quality


@torch.no_grad()
def beside_neighbours(
    vae: VAE,
    train_images: Tensor,
    count: int,
    k: int = NEIGHBOURS,
    features: Features | str | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Samples of the prior, and below each the k training images that are nearest to it, the
    nearest first: [1 + k, count, C, H, W], on the CPU.

    Args:
        vae: in evaluation mode; of a conditional model, given y, one or `count`.
        train_images: shape [M, C, H, W].
        count: of samples.
        features: in which they are near; see :func:`vae_lab.evaluation.features.extract`.
    """
    samples = vae.sample(count, temperature=temperature)
    train = [extract(x.to(vae.device), features) for x in train_images.split(BATCH)]
    found = nearest(extract(samples, features), torch.cat(train), min(k, len(train_images)))
    return torch.cat([samples.cpu().unsqueeze(0), train_images.cpu()[found.indices.T]])


class Nearest(NamedTuple):
    """The result of :func:`nearest`: distances and rows, [N, k] each."""

    values: Tensor
    indices: Tensor


def nearest(points: Tensor, others: Tensor, k: int = 1) -> Nearest:
    """The k others [M, F] that are nearest to each of the points [N, F], the nearest first."""
    chunks = points.split(max(ROWS // len(others), 1))
    found = [torch.cdist(x, others).topk(k, largest=False) for x in chunks]
    values, indices = (torch.cat(part) for part in zip(*found, strict=True))
    return Nearest(values, indices)


def reconstruction_fid(
    vae: VAE,
    x: Tensor,
    images: Tensor,
    num_images: int = 10_000,
    features: Features | str | None = None,
    memory: float = MEMORY,
) -> float:
    """The FID of reconstructions against images: how good samples could be at best, whose z are
    like those of the data.

    Args:
        vae: in evaluation mode, given y of x.
        x: what is reconstructed, [N, C, H, W].
        images: of the same data, as grey values, [N, C, H, W].
        num_images: the first ones are taken; all where there are fewer.
        features: see :func:`vae_lab.evaluation.features.extract`.
        memory: in bytes, roughly, for what is decoded at once.
    """
    batch = min(BATCH, images_at_once(vae, memory), encoded_at_once(vae, memory))
    pairs = zip(in_parts(vae, x[:num_images], batch), images.split(batch), strict=False)
    found = [
        (extract(real.to(vae.device), features), extract(part.reconstruct(some), features))
        for (part, some), real in pairs
    ]
    return frechet_distance(*(torch.cat(side) for side in zip(*found, strict=True)))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [F] of x [N, F], and the symmetric root [F, F] of its covariance."""
    x = x.detach().cpu().double()
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / (len(x) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, vectors * values.clamp_min(0).sqrt() @ vectors.T


def _covered(points: Tensor, others: Tensor, k: int) -> float:
    """The fraction of points [N, F] that are in the balls around others [M, F]."""
    chunk = max(ROWS // len(others), 1)
    # The nearest of all is the point itself.
    radii = [torch.cdist(x, others).kthvalue(k + 1).values for x in others.split(chunk)]
    radius = torch.cat(radii)  # [M]
    inside = [(torch.cdist(x, others) <= radius).any(1) for x in points.split(chunk)]
    return torch.cat(inside).double().mean().item()


def _check(a: Tensor, b: Tensor, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise ValueError(
            f"features must be [N, F] and [M, F], N and M at least {least}, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
