"""Images, drawn as they are."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .. import pictures, variables
from ..vae import VAE
from . import latent_figures
from .base import FIRST, Drawn, Figures, Latents

CODES = 16  # values of a variable in a picture
PIXELS = 2**22  # that one picture decodes: some 5000 images of 28 x 28
MAP_SIDE = 16  # images along a side of a plane


class Images(Figures):
    """Images [C, H, W]."""

    captions: ClassVar[Mapping[str, Drawn]] = {
        "reconstructions": Drawn(
            "Reconstructions", "Test images, and below each its reconstruction."
        ),
        "samples": Drawn(
            "Samples",
            "Mean images of draws from the prior; of a conditional model, a row of each label.",
        ),
        "neighbours": Drawn(
            "Samples and training images",
            "Draws from the prior, and below each the training images that are nearest to it.",
        ),
        "interpolation": Drawn(
            "Interpolations", "From one test image to another, through the latent, a row each."
        ),
        "traversals": Drawn(
            "Latent traversals",
            "One test image with one latent variable at each of its values, the others as they "
            "are; the variables in use, the one with the largest KL first; where the prior gives "
            "them no KL of their own, the one whose mean varies most. On a grid, at all places "
            "together.",
        ),
    }

    def draw(self, vae: VAE, x: Tensor, y: Tensor, folder: Path, count: int = 8) -> list[Path]:
        count = pictures.in_a_row(vae, count)
        grids = {"samples": pictures.samples(vae, count, count)}
        if len(x):
            x, y = x[:count], y[:count]
            grids["reconstructions"] = pictures.reconstructions(vae.of_data(x, y), x)
            known = vae.own_y(y)
            # Each image to the next, the last to the first.
            x1, y1 = x.roll(-1, 0), None if known is None else known.roll(-1, 0)
            grids["interpolation"] = pictures.interpolations(vae, x, x1, count, known, y1)
        written = {folder / f"{name}.png": grid for name, grid in grids.items()}
        for path, grid in written.items():
            pictures.save(grid, path)
        return list(written)

    def traversals(self, vae: VAE, x: Tensor, latents: Latents, path: Path) -> None:
        z = vae.latent.mode(latents.q)[0]
        images = pictures.traversals(vae.rows(FIRST), z, latents.units)
        columns, across = vae.latent.value_names(images.shape[1])
        measure = latents.use.measure
        latent_figures.traversals(images, latents.names, measure, columns, across, path)

    def codes(self, vae: VAE, latents: Latents, usage: Tensor, path: Path) -> None:
        order = latents.use.each.argsort(descending=True, stable=True)
        shown = min(usage.shape[1], CODES)
        decoded = len(latents.units) * usage.shape[1] * math.prod(vae.output_shape[1:])
        images = max(PIXELS // decoded, 1)
        some = slice(min(images, 256))
        z = vae.latent.mode(latents.q)[some]
        added = pictures.code_images(vae.rows(some), z, latents.units)
        added = added[:, :shown].mean(2, keepdim=True)
        names = [f"$z_{{{unit}}}$" for unit in order.tolist()]
        grid = pictures.grid(added.flatten(0, 1), columns=shown, gap=float("nan"))[0].cpu()
        pictured = (len(latents.units), shown)
        latent_figures.codes(usage[order].cpu(), names, grid, pictured, path)

    def plane(self, vae: VAE, latents: Latents, y: Tensor, path: Path) -> None:
        """The posteriors' means, and what is decoded where they and the most of the prior are."""
        points = latents.q.mean.flatten(1).cpu()
        reach = torch.cat([points, variables.values(vae).cpu()])
        low, high = reach.amin(0), reach.amax(0)
        half = (high - low) / (MAP_SIDE - 1) / 2  # a cell's
        across, up = (
            torch.linspace(*ends, MAP_SIDE)
            for ends in zip(low.tolist(), high.tolist(), strict=True)
        )
        numbers = torch.cartesian_prod(up.flip(0), across).flip(-1)  # rows from the top
        z = vae.latent.from_numbers(numbers.to(vae.device, vae.dtype))
        decoded = pictures.decoded(vae.rows(FIRST), z)
        (left, bottom), (right, top) = (low - half).tolist(), (high + half).tolist()
        extent = (left, right, bottom, top)
        grid = pictures.grid(decoded, MAP_SIDE, gap=None).cpu()
        names = latents.label_names
        latent_figures.scatter(points, y, "means of q(z | x)", path, grid, extent, names=names)

    def png(self, vae: VAE, data: Mapping[str, Tensor], others: Tensor) -> bytes:
        images = vae.likelihood.intensity(torch.stack(list(data.values())))
        return pictures.content(pictures.grid(images, len(data)))
