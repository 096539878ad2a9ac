"""Pictures of a latent on a grid: what its places hold, where the nats are, what a change does."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import pictures
from ..vae import VAE
from . import latent_figures, place_figures

PIXELS = 2**22  # that are encoded at once: some 150 images of 3 x 96 x 96
DRAWS = 200_000  # in a histogram
ROWS = 8  # variables in a picture of traversals
VALUES = 16  # in a row of it
CODES = 256  # in a picture of the codebook
SHOWN = 6  # test images with their maps
MAPS = 4  # of variables, below each of them


class Seen(NamedTuple):
    """The test images in the latent, with V variables at each place."""

    kl: Tensor  # [N, h, w, V], in nats
    modes: Tensor  # numbers of the most probable z, [N, h, w, V]
    draws: Tensor  # those of a draw of q
    means: Tensor  # of q, the mean over the places, [N, F]
    usage: Tensor | None  # the mean probability of each value, over images and places, [V, K]


def draw(vae: VAE, x: Tensor, y: Tensor, folder: Path) -> None:
    """Writes the pictures of a latent on a grid; see :func:`.gallery.draw`."""
    seen = _look(vae, x)
    _kl_map(vae, seen, x, folder / "kl_map.png")
    _value_maps(vae, seen, x, folder / "value_maps.png")
    z = vae.latent.mode(vae.encode(x[:1]))[0]
    _traversals(vae, seen, z, folder / "traversals.png")
    _place_traversals(vae, seen, z, folder / "place_traversals.png")
    _aggregate_posterior(vae, seen, folder / "aggregate_posterior.png")
    if vae.latent.kind == "codes" and _variables(vae).shape[-1] == 1 and seen.usage is not None:
        frequent = seen.usage[0].argsort(descending=True)[:CODES]
        patches = pictures.code_patches(vae).cpu()[frequent]
        pictures.save(pictures.grid(patches, VALUES), folder / "codebook.png")
    title = "t-SNE of the posteriors, the mean over the places"
    latent_figures.tsne(seen.means, y.cpu(), title, folder / "latent_map.png")


def _look(vae: VAE, x: Tensor) -> Seen:
    latent, parts, usage = vae.latent, [], []
    for images in x.split(max(PIXELS // math.prod(vae.shape), 1)):
        q = vae.encode(images)
        places = len(latent.grid)
        numbers = (latent.numbers(z).float() for z in (latent.mode(q), q.sample()))
        values = [latent.at_places(v).cpu() for v in (latent.kl(q), *numbers)]
        parts.append((*values, q.mean.flatten(1, places).mean(1).flatten(1).cpu()))
        if (probabilities := latent.usage(q)) is not None:  # [N, L, K]
            usage.append(_over_places(vae, probabilities.sum(0)))
    kl, modes, draws, means = (torch.cat(part) for part in zip(*parts, strict=True))
    return Seen(kl, modes, draws, means, torch.stack(usage).sum(0) / len(x) if usage else None)


def _over_places(vae: VAE, values: Tensor) -> Tensor:
    """The mean over the places, [L, K] -> [V, K]."""
    return vae.latent.at_places(values.T).flatten(1, -2).mean(1).T.cpu()


def _variables(vae: VAE) -> Tensor:
    """The index of each latent variable, where it is, [h, w, V]."""
    return vae.latent.at_places(torch.arange(vae.latent.num_variables))


def _kl_map(vae: VAE, seen: Seen, x: Tensor, path: Path) -> None:
    kl = seen.kl.sum(-1)  # [N, h, w]
    maps = torch.cat([kl[:SHOWN], kl.mean(0, keepdim=True)])
    titles = [f"{total:,.0f} nats" for total in maps.sum((1, 2)).tolist()]
    titles[-1] += f"\nmean of {len(x)}"
    place_figures.heat(_rgb(x[:SHOWN]), maps, titles, pictures.place_size(vae), path)


def _value_maps(vae: VAE, seen: Seen, x: Tensor, path: Path) -> None:
    channels = pictures.active_units(seen.kl.mean((0, 1, 2)), MAPS)
    names = [f"$z_{{{channel}}}$" for channel in channels]
    numbers = seen.modes[:SHOWN, ..., channels].movedim(-1, 1)  # [N, R, h, w]
    side, images = pictures.place_size(vae), _rgb(x[:SHOWN])
    if vae.latent.kind == "codes" and seen.usage is not None:
        rank = seen.usage[channels].argsort(descending=True).argsort()  # of every code, [R, K]
        place_figures.codes(images, numbers.long(), rank, names, side, path)
    else:
        low, high = seen.modes.min().item(), seen.modes.max().item()
        place_figures.values(images, numbers, (low, high), names, side, path)


def _traversals(vae: VAE, seen: Seen, z: Tensor, path: Path) -> None:
    """Each variable at all places together."""
    kl = seen.kl.mean((0, 1, 2))
    channels = pictures.active_units(kl, pictures.in_a_row(vae, ROWS))
    names = [f"$z_{{{channel}}}$  {kl[channel]:.2f} nats a place" for channel in channels]
    units = [_variables(vae)[..., channel].flatten() for channel in channels]
    values, columns, across = _values(vae, seen, pictures.in_a_row(vae, VALUES))
    images = pictures.traversals(vae, z, units, values=values)
    latent_figures.traversals(images, names, columns, across, path)


def _place_traversals(vae: VAE, seen: Seen, z: Tensor, path: Path) -> None:
    """Each variable of the middle place; what is shown are the places around it."""
    row, column = (count // 2 for count in vae.latent.grid)
    kl = seen.kl.mean(0)[row, column]
    channels = pictures.active_units(kl, ROWS)
    names = [f"$z_{{{channel}}}$  {kl[channel]:.2f} nats" for channel in channels]
    units = _variables(vae)[row, column][channels].tolist()
    values, columns, across = _values(vae, seen, VALUES)
    images = pictures.traversals(vae, z, units, values=values)
    around = pictures.around(images, (row, column), pictures.place_size(vae))
    latent_figures.traversals(around, names, columns, across, path)


def _values(vae: VAE, seen: Seen, most: int) -> tuple[Tensor, list[str], str]:
    """At most so many values to set the variables to, [count, L], their names and their axis's."""
    latent = vae.latent
    values = latent.values(min(most, 7))
    if len(values) <= most or seen.usage is None:
        return values, *latent.value_names(len(values))
    ranked = seen.usage.argsort(descending=True)[:, :most].T  # [count, V]
    names = ranked[:, 0].tolist() if ranked.shape[1] == 1 else range(1, most + 1)
    chosen = ranked[:, None, None].expand(-1, *latent.grid, -1).flatten(1).to(values)
    return chosen, [str(name) for name in names], "values, the most frequent first"


def _aggregate_posterior(vae: VAE, seen: Seen, path: Path) -> None:
    latent, kl = vae.latent, seen.kl.mean((0, 1, 2))
    channels = pictures.active_units(kl, 12)
    names = [f"$z_{{{channel}}}$  {kl[channel]:.2f} nats a place" for channel in channels]
    expected = latent.usage(latent.prior())
    if seen.usage is None or expected is None:
        draws = seen.draws.flatten(0, 2)[:, channels]
        draws = draws[:: len(draws) // DRAWS + 1]
        units = _variables(vae)[0, 0][channels].tolist()
        latent_figures.densities(draws, latent, units, names, path)
    elif latent.kind == "codes":
        expected = _over_places(vae, expected)
        latent_figures.codebook(seen.usage[channels], expected[channels], names, path)
    else:
        expected = _over_places(vae, expected)
        if seen.usage.shape[1] == 2:  # there is room for all
            channels = kl.argsort(descending=True, stable=True).tolist()
        latent_figures.frequencies(seen.usage[channels], expected[channels], names, path)


def _rgb(x: Tensor) -> Tensor:
    """Images [N, C, H, W] as [N, 3, H, W] on the CPU, in grey unless they have three channels."""
    x = x.float().cpu()
    return x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
