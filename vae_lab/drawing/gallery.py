"""All pictures and figures of a trained VAE, in one folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import figures, pictures, variables
from ..inputs import Shape
from ..memory import encode_in_parts
from ..seeding import seeded
from ..vae import VAE
from . import latent_figures, places
from .base import Drawn, Figures, Latents
from .kinds import figures_of

ROWS = 12  # latent variables in a picture
DRAWS = 10_000  # in a histogram


# By the names of their files: of all kinds of data.
LATENT = {
    "place_traversals": Drawn(
        "Latent traversals of one place",
        "The middle of one test image with one latent variable of its middle place at each of its "
        "values, all others as they are.",
    ),
    "codebook": Drawn(
        "Codebook",
        "What each code looks like amid places that all have it, row by row from the most frequent "
        "code to the rarest.",
    ),
    "value_maps": Drawn(
        "Values at the places",
        "Test images, and below each the most probable values of its latent variables, in colours "
        "and where in the image they are; of many variables those most in use.",
    ),
    "kl_map": Drawn(
        "Where the nats are",
        "The KL of each place, over test images and in the mean over all; the sum above.",
    ),
    "latent_map": Drawn("Map of the latent", "Where the test data lies in the latent, by label."),
    "aggregate_posterior": Drawn(
        "Aggregate posterior and prior",
        "How the latent variables are distributed over the test data, and under the prior. On a "
        "grid, each over all places; codes from the most frequent one to the rarest.",
    ),
    "codes": Drawn(
        "Codes",
        "How often each value of each latent variable is used, and the image that it adds: red "
        "is brighter than the mean image, blue darker.",
    ),
    "training": Drawn("Training", "The ELBO and its terms; below, the schedules that change."),
    "gradients": Drawn(
        "Gradient of the encoder", "Bias, variance, signal-to-noise ratio and cosine over training."
    ),
}


def captions(shape: Shape) -> dict[str, Drawn]:
    """Of all pictures of such data, in the order in which a report has them."""
    return {**figures_of(shape).captions, **LATENT}


@torch.no_grad()
def draw(
    vae: VAE,
    x: Tensor,
    y: Tensor,
    folder: str | Path,
    rows: Sequence[Mapping[str, str]] = (),
    seed: int = 0,
    label_names: Sequence[Any] | None = None,
) -> dict[str, Path]:
    """Writes every picture that there is of this kind of latent as `folder/NAME.png`.

    Reconstructions, samples, interpolations, latent traversals, a map of the latent (itself if it
    has two dimensions, otherwise t-SNE of the posteriors), the aggregate posterior against the
    prior, of discrete latents the codes, of latents on a grid what there is at its places, and the
    curves of training. The map of the nats is left out where the prior gives no place a KL of its
    own. Takes seconds; the generators are afterwards
    where they were.

    Args:
        vae: The model, in evaluation mode.
        x: Data that it was not trained on, [N, *X], some 1000.
        y: Their labels, [N] int64, -1 where there is none; a conditional model is given them.
        folder: Where the PNGs go.
        rows: of the run's metrics.csv, for the curves.
        seed: of the noise in the pictures.
        label_names: by their numbers; None: they have none.

    Returns:
        The files, by the names of :func:`captions`.
    """
    folder = Path(folder)
    with seeded(seed, vae.device):
        x = x.to(vae.device)
        of_x, shown = vae.of_data(x, y), figures_of(vae.shape)
        shown.draw(vae, x, y, folder)
        if vae.latent.grid:
            places.draw(of_x, x, y, folder)
        else:
            _draw_latent(shown, of_x, x, y, folder, label_names)
    figures.training(rows, folder / "training.png")
    known = captions(vae.shape)
    return {name: path for name in known if (path := folder / f"{name}.png").is_file()}


def _draw_latent(
    shown: Figures,
    vae: VAE,
    x: Tensor,
    y: Tensor,
    folder: Path,
    label_names: Sequence[Any] | None,
) -> None:
    q = encode_in_parts(vae, x)
    use = variables.use(vae, [q])
    units = pictures.active_units(use.each, ROWS)
    names = [f"$z_{{{unit}}}$  {use.each[unit]:.2f}{use.unit}" for unit in units]
    latents = Latents(q, use, units, names, label_names)
    shown.traversals(vae, x, latents, folder / "traversals.png")
    usage, expected = vae.latent.usage(q), variables.frequencies(vae)
    if usage is None or expected is None:
        _densities(vae, latents, folder / "aggregate_posterior.png")
    else:
        usage = usage.mean(0)  # of every value of every variable, [L, V]
        shown.codes(vae, latents, usage, folder / "codes.png")
        _frequencies(latents, usage, expected, folder / "aggregate_posterior.png")
    path = folder / "latent_map.png"
    if vae.latent.kind == "numbers" and vae.latent.size == 2:
        shown.plane(vae, latents, y.cpu(), path)
    else:
        title = "t-SNE of the posteriors"
        latent_figures.tsne(q.mean.flatten(1).cpu(), y.cpu(), title, path, label_names)


def _frequencies(latents: Latents, usage: Tensor, expected: Tensor, path: Path) -> None:
    units = latents.units
    if usage.shape[1] == 2:  # there is room for all
        units = latents.use.each.argsort(descending=True, stable=True).tolist()
    latent_figures.frequencies(usage[units].cpu(), expected[units].cpu(), latents.names, path)


def _densities(vae: VAE, latents: Latents, path: Path) -> None:
    draws = math.ceil(DRAWS / latents.q.batch_shape[0])
    z = vae.latent.numbers(latents.q.sample((draws,)).flatten(0, 1))[:, latents.units].cpu()
    across, height = variables.densities(vae, latents.units)
    latent_figures.densities(z, across, height, latents.names, path)
