"""All pictures and figures of a trained VAE, in one folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .. import figures, pictures, variables
from ..inputs import is_picture
from ..memory import encode_in_parts
from ..seeding import seeded
from ..vae import VAE
from ..variables import Use
from . import latent_figures, places

CODES = 16  # values of a variable in a picture
ROWS = 12  # latent variables in a picture
PIXELS = 2**22  # that one picture decodes: some 5000 images of 28 x 28
MAP_SIDE = 16  # images along a side of a plane
DRAWS = 10_000  # in a histogram
FIRST = slice(1)  # of the test images


class Drawn(NamedTuple):
    """A picture: what a reader is told that it shows."""

    title: str
    text: str


# By the names of their files, in the order in which a report has them.
CAPTIONS = {
    "reconstructions": Drawn("Reconstructions", "Test images, and below each its reconstruction."),
    "samples": Drawn(
        "Samples",
        "Mean images of draws from the prior; of a conditional model, a row of each label.",
    ),
    "interpolation": Drawn(
        "Interpolations", "From one test image to another, through the latent, a row each."
    ),
    "traversals": Drawn(
        "Latent traversals",
        "One test image with one latent variable at each of its values, the others as they are; "
        "the variables in use, the one with the largest KL first; where the prior gives them no KL "
        "of their own, the one whose mean varies most. On a grid, at all places together.",
    ),
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
    "latent_map": Drawn("Map of the latent", "Where the test images lie in the latent, by label."),
    "aggregate_posterior": Drawn(
        "Aggregate posterior and prior",
        "How the latent variables are distributed over the test images, and under the prior. On a "
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


class Latents(NamedTuple):
    """The test images in the latent; the variables that are shown are by descending use."""

    q: Distribution  # of every image, batch shape [N]
    use: Use  # of each variable
    units: list[int]  # those in use, R
    names: list[str]  # of these


@torch.no_grad()
def draw(
    vae: VAE,
    x: Tensor,
    y: Tensor,
    folder: str | Path,
    rows: Sequence[Mapping[str, str]] = (),
    seed: int = 0,
) -> dict[str, Path]:
    """Writes every picture that there is of this kind of latent as `folder/NAME.png`.

    Reconstructions, samples, interpolations, latent traversals, a map of the latent (itself if it
    has two dimensions, otherwise t-SNE of the posteriors), the aggregate posterior against the
    prior, of discrete latents the codes, of latents on a grid what there is at its places, and the
    curves of training. The map of the nats is left out where the prior gives no place a KL of its
    own, and what shows data where these are no images. Takes seconds; the generators are afterwards
    where they were.

    Args:
        vae: The model, in evaluation mode.
        x: Images that it was not trained on, [N, C, H, W], some 1000.
        y: Their labels, [N] int64, -1 where there is none; a conditional model is given them.
        folder: Where the PNGs go.
        rows: of the run's metrics.csv, for the curves.
        seed: of the noise in the pictures.

    Returns:
        The files, by the names of :data:`CAPTIONS`.
    """
    folder = Path(folder)
    with seeded(seed, vae.device):
        x = x.to(vae.device)
        of_x = vae.of_data(x, y)
        if is_picture(vae.shape):
            _draw_images(vae, of_x, x, y, folder)
        if vae.latent.grid:
            places.draw(of_x, x, y, folder)
        else:
            _draw_latent(of_x, x, y, folder)
    figures.training(rows, folder / "training.png")
    return {name: path for name in CAPTIONS if (path := folder / f"{name}.png").is_file()}


def _draw_images(vae: VAE, of_x: VAE, x: Tensor, y: Tensor, folder: Path) -> None:
    count = pictures.in_a_row(vae, 8)
    first, known = x[:count], vae.own_y(y[:count])
    x1, y1 = first.roll(-1, 0), None if known is None else known.roll(-1, 0)
    grids = {
        "samples": pictures.samples(vae, count, count),
        "reconstructions": pictures.reconstructions(of_x.rows(slice(count)), first),
        "interpolation": pictures.interpolations(vae, first, x1, count, known, y1),
    }
    for name, image in grids.items():
        pictures.save(image, folder / f"{name}.png")


def _draw_latent(vae: VAE, x: Tensor, y: Tensor, folder: Path) -> None:
    q = encode_in_parts(vae, x)
    use = variables.use(vae, [q])
    units = pictures.active_units(use.each, ROWS)
    names = [f"$z_{{{unit}}}$  {use.each[unit]:.2f}{use.unit}" for unit in units]
    latents = Latents(q, use, units, names)
    shown = is_picture(vae.shape)
    if shown:
        _traversals(vae, latents, folder / "traversals.png")
    usage, expected = vae.latent.usage(q), variables.frequencies(vae)
    if usage is None or expected is None:
        _densities(vae, latents, folder / "aggregate_posterior.png")
    else:
        usage = usage.mean(0)  # of every value of every variable, [L, V]
        if shown:
            _codes(vae, latents, usage, folder / "codes.png")
        _frequencies(latents, usage, expected, folder / "aggregate_posterior.png")
    _map(vae, latents, y.cpu(), folder / "latent_map.png")


def _traversals(vae: VAE, latents: Latents, path: Path) -> None:
    z = vae.latent.mode(latents.q)[0]
    images = pictures.traversals(vae.rows(FIRST), z, latents.units)
    columns, across = vae.latent.value_names(images.shape[1])
    measure = latents.use.measure
    latent_figures.traversals(images, latents.names, measure, columns, across, path)


def _codes(vae: VAE, latents: Latents, usage: Tensor, path: Path) -> None:
    order = latents.use.each.argsort(descending=True, stable=True)
    shown = min(usage.shape[1], CODES)
    decoded = len(latents.units) * usage.shape[1] * math.prod(vae.output_shape[1:])
    images = max(PIXELS // decoded, 1)
    some = slice(min(images, 256))
    z = vae.latent.mode(latents.q)[some]
    added = pictures.code_images(vae.rows(some), z, latents.units)[:, :shown].mean(2, keepdim=True)
    names = [f"$z_{{{unit}}}$" for unit in order.tolist()]
    grid = pictures.grid(added.flatten(0, 1), columns=shown, gap=float("nan"))[0].cpu()
    latent_figures.codes(usage[order].cpu(), names, grid, (len(latents.units), shown), path)


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


def _map(vae: VAE, latents: Latents, y: Tensor, path: Path) -> None:
    """The latent itself where it is a plane, otherwise t-SNE of the posteriors' means."""
    features = latents.q.mean.flatten(1).cpu()
    if vae.latent.kind == "numbers" and vae.latent.size == 2 and is_picture(vae.shape):
        _plane(vae, features, y, path)
    else:
        latent_figures.tsne(features, y, "t-SNE of the posteriors", path)


def _plane(vae: VAE, points: Tensor, y: Tensor, path: Path) -> None:
    """The posteriors' means, and what is decoded where they and the most of the prior are."""
    reach = torch.cat([points, variables.values(vae).cpu()])
    low, high = reach.amin(0), reach.amax(0)
    half = (high - low) / (MAP_SIDE - 1) / 2  # a cell's
    across, up = (
        torch.linspace(*ends, MAP_SIDE) for ends in zip(low.tolist(), high.tolist(), strict=True)
    )
    numbers = torch.cartesian_prod(up.flip(0), across).flip(-1)  # rows from the top
    z = vae.latent.from_numbers(numbers.to(vae.device, vae.dtype))
    first = vae.rows(FIRST)
    decoded = pictures.grid(vae.likelihood.mean(first.decode(z)), MAP_SIDE, gap=None).cpu()
    (left, bottom), (right, top) = (low - half).tolist(), (high + half).tolist()
    extent = (left, right, bottom, top)
    latent_figures.scatter(points, y, "means of q(z | x)", path, decoded, extent)
