"""All pictures and figures of a trained VAE, in one folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .. import figures, pictures, variables
from ..distributions import base
from ..optional import needs
from ..seeding import seeded
from ..vae import VAE
from ..variables import Use
from . import latent_figures

CODES = 16  # values of a variable in a picture
ROWS = 12  # latent variables in a picture
PIXELS = 2**22  # that one picture decodes: some 5000 images of 28 x 28
MAP_SIDE = 16  # images along a side of a plane
MAP_POINTS = 500  # t-SNE of more takes many seconds
DRAWS = 10_000  # in a histogram
BINS = 60  # of it


class Drawn(NamedTuple):
    """A picture: what a reader is told that it shows."""

    title: str
    text: str


# By the names of their files, in the order in which a report has them.
CAPTIONS = {
    "reconstructions": Drawn("Reconstructions", "Test images, and below each its reconstruction."),
    "samples": Drawn("Samples", "Mean images of draws from the prior."),
    "interpolation": Drawn(
        "Interpolations", "From one test image to another, through the latent, a row each."
    ),
    "traversals": Drawn(
        "Latent traversals",
        "One test image with one latent variable at each of its values, the others as they are; "
        "the variables in use, the one with the largest KL first; where the prior gives them no KL "
        "of their own, the one whose mean varies most.",
    ),
    "latent_map": Drawn("Map of the latent", "Where the test images lie in the latent, by label."),
    "aggregate_posterior": Drawn(
        "Aggregate posterior and prior",
        "How the latent variables are distributed over the test images, and under the prior.",
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
    prior, of discrete latents the codes, and the curves of training. Takes seconds; the generators
    are afterwards where they were.

    Args:
        vae: The model, in evaluation mode.
        x: Images that it was not trained on, [N, C, H, W], some 1000.
        y: Their labels, [N] int64, -1 where there is none.
        folder: Where the PNGs go.
        rows: of the run's metrics.csv, for the curves.
        seed: of the noise in the pictures.

    Returns:
        The files, by the names of :data:`CAPTIONS`.
    """
    folder = Path(folder)
    with seeded(seed, vae.device):
        x = x.to(vae.device)
        grids = {
            "samples": pictures.samples(vae),
            "reconstructions": pictures.reconstructions(vae, x[:8]),
        }
        grids["interpolation"] = pictures.interpolations(vae, x[:8], x[:8].roll(-1, 0))
        for name, image in grids.items():
            pictures.save(image, folder / f"{name}.png")
        _draw_latent(vae, x, y, folder)
    figures.training(rows, folder / "training.png")
    return {name: path for name in CAPTIONS if (path := folder / f"{name}.png").is_file()}


def _draw_latent(vae: VAE, x: Tensor, y: Tensor, folder: Path) -> None:
    q = vae.encode(x)
    use = variables.use(vae, [q])
    units = pictures.active_units(use.each, ROWS)
    names = [f"$z_{{{unit}}}$  {use.each[unit]:.2f}{use.unit}" for unit in units]
    latents = Latents(q, use, units, names)
    _traversals(vae, latents, folder / "traversals.png")
    usage, expected = vae.latent.usage(q), _expected_usage(vae)
    if usage is None or expected is None:
        _densities(vae, latents, folder / "aggregate_posterior.png")
    else:
        usage = usage.mean(0)  # of every value of every variable, [L, V]
        _codes(vae, latents, usage, folder / "codes.png")
        _frequencies(latents, usage, expected, folder / "aggregate_posterior.png")
    _map(vae, latents, y.cpu(), folder / "latent_map.png")


def _traversals(vae: VAE, latents: Latents, path: Path) -> None:
    images = pictures.traversals(vae, vae.latent.mode(latents.q)[0], latents.units)
    count = images.shape[1]
    rows, title = latents.names, f"variable, its {latents.use.measure}"
    columns, across = vae.latent.value_names(count)
    if count < 4:  # a narrow column of pictures, unless lying down
        images, rows, columns = images.transpose(0, 1), columns, [n.split()[0] for n in rows]
        across, title = "variable", ""
    image = pictures.grid(images.flatten(0, 1), columns=images.shape[1]).cpu()
    latent_figures.cells(image, path, rows, columns, across, title)


def _codes(vae: VAE, latents: Latents, usage: Tensor, path: Path) -> None:
    order = latents.use.each.argsort(descending=True, stable=True)
    shown = min(usage.shape[1], CODES)
    decoded = len(latents.units) * usage.shape[1] * math.prod(vae.output_shape[1:])
    images = max(PIXELS // decoded, 1)
    z = vae.latent.mode(latents.q)[: min(images, 256)]
    added = pictures.code_images(vae, z, latents.units)[:, :shown].mean(2, keepdim=True)
    names = [f"$z_{{{unit}}}$" for unit in order.tolist()]
    grid = pictures.grid(added.flatten(0, 1), columns=shown, gap=float("nan"))[0].cpu()
    latent_figures.codes(usage[order].cpu(), names, grid, (len(latents.units), shown), path)


def _frequencies(latents: Latents, usage: Tensor, expected: Tensor, path: Path) -> None:
    units = latents.units
    if usage.shape[1] == 2:  # there is room for all
        units = latents.use.each.argsort(descending=True, stable=True).tolist()
    latent_figures.frequencies(usage[units].cpu(), expected[units].cpu(), latents.names, path)


def _expected_usage(vae: VAE) -> Tensor | None:
    """How often the prior has each value of each variable, [L, V]; None for numbers."""
    expected = vae.latent.usage(vae.latent.prior())
    if vae.prior is None or expected is None:
        return expected
    drawn = vae.latent.numbers(vae.p_z().sample((DRAWS,)))  # [S, L]
    return torch.stack([(drawn == value).float().mean(0) for value in vae.latent.values()], -1)


def _densities(vae: VAE, latents: Latents, path: Path) -> None:
    latent = vae.latent
    draws = math.ceil(DRAWS / latents.q.batch_shape[0])
    z = latent.numbers(latents.q.sample((draws,)).flatten(0, 1))[:, latents.units]
    across, height = (part[:, latents.units].cpu() for part in _prior_densities(vae))
    latent_figures.densities(z.cpu(), across, height, latents.names, path)


def _prior_densities(vae: VAE) -> tuple[Tensor, Tensor]:
    """Numbers of each variable, and the prior's density there, [P, L] each; of another prior than
    the latent's own a histogram of draws."""
    latent, prior = vae.latent, vae.latent.prior()
    if vae.prior is not None:
        drawn = latent.numbers(vae.p_z().sample((DRAWS,))).cpu()
        found = [torch.histogram(column, BINS, density=True) for column in drawn.T.contiguous()]
        centres = [(edges[1:] + edges[:-1]) / 2 for _, edges in found]
        return torch.stack(centres, 1), torch.stack([height for height, _ in found], 1)
    steps = torch.linspace(-4, 4, 200, device=vae.device)
    across = prior.mean + steps.reshape(-1, *[1] * prior.mean.ndim) * prior.stddev
    across = across.clamp(*latent.bounds)
    density = base(prior).log_prob(across).exp()
    return latent.numbers(across), latent.numbers(density)


def _map(vae: VAE, latents: Latents, y: Tensor, path: Path) -> None:
    """The latent itself where it is a plane, otherwise t-SNE of the posteriors' means."""
    features = latents.q.mean.flatten(1).cpu()
    if vae.latent.kind == "numbers" and vae.latent.size == 2:
        _plane(vae, features, y, path)
    elif len(features) > 10 and features.shape[1] > 1 and features.std(0).max() > 1e-6:
        points, labels = features[:MAP_POINTS].numpy(), y[:MAP_POINTS]
        with needs("train", __name__):
            from sklearn.manifold import TSNE  # takes a second

        perplexity = min(30.0, (len(points) - 1) / 3)
        tsne = TSNE(init="pca", random_state=0, perplexity=perplexity, max_iter=500)
        mapped = torch.from_numpy(tsne.fit_transform(points))
        latent_figures.scatter(mapped, labels, "t-SNE of the posteriors", path)


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
    decoded = pictures.grid(vae.likelihood.mean(vae.decode(z)), MAP_SIDE, gap=None).cpu()
    (left, bottom), (right, top) = (low - half).tolist(), (high + half).tolist()
    extent = (left, right, bottom, top)
    latent_figures.scatter(points, y, "means of q(z | x)", path, decoded, extent)
