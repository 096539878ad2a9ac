"""Pictures of a latent on a grid: what its places hold, where the nats are, what a change does."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import pictures, variables
from ..memory import encoded_at_once, in_parts, posteriors_at_once
from ..networks.base import place_size
from ..vae import VAE
from ..variables import Use
from . import latent_figures, place_figures

DRAWS = 200_000  # in a histogram
ROWS = 8  # variables in a picture of traversals
VALUES = 16  # in a row of it
CODES = 256  # in a picture of the codebook
SHOWN = 6  # test images with their maps
MAPS = 4  # of variables, below each of them
PANELS = 12  # of variables, for their distributions


class Seen(NamedTuple):
    """The test images in the latent, with V variables at each place."""

    use: Use  # of each variable
    channels: Tensor  # that of each variable of a place, the mean over the places, [V]
    kl: Tensor | None  # [N, h, w], in nats; None where the prior gives no place one of its own
    modes: Tensor  # numbers of the most probable z, [N, h, w, V]
    draws: Tensor  # those of a draw of q
    means: Tensor  # of q, the mean over the places, [N, F]
    usage: Tensor | None  # the mean probability of each value, over images and places, [V, K]


def draw(vae: VAE, x: Tensor, y: Tensor, folder: Path) -> None:
    """Writes the pictures of a latent on a grid; see :func:`.gallery.draw`."""
    seen = _look(vae, x)
    if seen.kl is not None:
        _kl_map(vae, seen.kl, x, folder / "kl_map.png")
    _value_maps(vae, seen, x, folder / "value_maps.png")
    first = vae.rows(slice(1))
    z = vae.latent.mode(first.encode(x[:1]))[0]
    _traversals(first, seen, z, folder / "traversals.png")
    _place_traversals(first, seen, z, folder / "place_traversals.png")
    _aggregate_posterior(vae, seen, folder / "aggregate_posterior.png")
    if vae.latent.kind == "codes" and _variables(vae).shape[-1] == 1 and seen.usage is not None:
        frequent = seen.usage[0].argsort(descending=True)[:CODES]
        patches = pictures.code_patches(first, frequent).cpu()
        pictures.save(pictures.grid(patches, VALUES), folder / "codebook.png")
    title = "t-SNE of the posteriors, the mean over the places"
    latent_figures.tsne(seen.means, y.cpu(), title, folder / "latent_map.png")


def _look(vae: VAE, x: Tensor) -> Seen:
    latent, places = vae.latent, len(vae.latent.grid)
    size = min(encoded_at_once(vae), posteriors_at_once(vae))
    models, data = zip(*in_parts(vae, x, size), strict=True)
    posteriors = [model.encode(some) for model, some in zip(models, data, strict=True)]
    use = variables.use(vae, posteriors)
    kl, parts, usage = [], [], []
    for model, q in zip(models, posteriors, strict=True):
        if vae.prior is None:
            kl.append(latent.at_places(model.kl(q)).sum(-1).cpu())
        numbers = (latent.numbers(z).float() for z in (latent.mode(q), q.sample()))
        means = q.mean.flatten(1, places).mean(1).flatten(1)
        parts.append((*(latent.at_places(value).cpu() for value in numbers), means.cpu()))
        if (probabilities := latent.usage(q)) is not None:  # [N, L, K]
            of_all = probabilities.sum(0, keepdim=True)  # [1, L, K]
            usage.append(latent.places_as_data(of_all).mean(0).cpu())
    modes, draws, means = (torch.cat(part) for part in zip(*parts, strict=True))
    return Seen(
        use,
        channels=latent.at_places(use.each).mean((0, 1)),
        kl=torch.cat(kl) if kl else None,
        modes=modes,
        draws=draws,
        means=means,
        usage=torch.stack(usage).sum(0) / len(x) if usage else None,
    )


def _variables(vae: VAE) -> Tensor:
    """The index of each latent variable, where it is, [h, w, V]."""
    return vae.latent.at_places(torch.arange(vae.latent.num_variables))


def _kl_map(vae: VAE, kl: Tensor, x: Tensor, path: Path) -> None:
    maps = torch.cat([kl[:SHOWN], kl.mean(0, keepdim=True)])
    titles = [f"{total:,.0f} nats" for total in maps.sum((1, 2)).tolist()]
    titles[-1] += f"\nmean of {len(x)}"
    place_figures.heat(_rgb(vae, x[:SHOWN]), maps, titles, place_size(vae.network), path)


def _value_maps(vae: VAE, seen: Seen, x: Tensor, path: Path) -> None:
    channels = pictures.active_units(seen.channels, MAPS)
    names = [f"$z_{{{channel}}}$" for channel in channels]
    numbers = seen.modes[:SHOWN, ..., channels].movedim(-1, 1)  # [N, R, h, w]
    side, images = place_size(vae.network), _rgb(vae, x[:SHOWN])
    if vae.latent.kind == "codes" and seen.usage is not None:
        rank = seen.usage[channels].argsort(descending=True).argsort()  # of every code, [R, K]
        place_figures.codes(images, numbers.long(), rank, names, side, path)
    else:
        low, high = seen.modes.min().item(), seen.modes.max().item()
        place_figures.values(images, numbers, (low, high), names, side, path)


def _traversals(vae: VAE, seen: Seen, z: Tensor, path: Path) -> None:
    """Each variable at all places together."""
    channels = pictures.active_units(seen.channels, pictures.in_a_row(vae, ROWS))
    names = _names(seen, channels)
    units = [_variables(vae)[..., channel].flatten() for channel in channels]
    values, columns, across = _values(vae, seen, pictures.in_a_row(vae, VALUES))
    images = pictures.traversals(vae, z, units, values=values)
    latent_figures.traversals(images, names, seen.use.measure, columns, across, path)


def _place_traversals(vae: VAE, seen: Seen, z: Tensor, path: Path) -> None:
    """Each variable of the middle place; what is shown are the places around it."""
    row, column = (count // 2 for count in vae.latent.grid)
    use = vae.latent.at_places(seen.use.each)[row, column]
    channels = pictures.active_units(use, ROWS)
    names = [f"$z_{{{channel}}}$  {use[channel]:.2f}{seen.use.unit}" for channel in channels]
    units = _variables(vae)[row, column][channels].tolist()
    values, columns, across = _values(vae, seen, VALUES)
    images = pictures.traversals(vae, z, units, values=values)
    around = pictures.around(images, (row, column), place_size(vae.network))
    latent_figures.traversals(around, names, seen.use.measure, columns, across, path)


def _values(vae: VAE, seen: Seen, most: int) -> tuple[Tensor, list[str], str]:
    """At most so many values to set the variables to, [count, L], their names and their axis's."""
    latent = vae.latent
    values = variables.values(vae, min(most, 7))
    if len(values) <= most or seen.usage is None:
        return values, *latent.value_names(len(values))
    ranked = seen.usage.argsort(descending=True)[:, :most].T  # [count, V]
    names = ranked[:, 0].tolist() if ranked.shape[1] == 1 else range(1, most + 1)
    chosen = ranked[:, None, None].expand(-1, *latent.grid, -1).flatten(1).to(values)
    return chosen, [str(name) for name in names], "values, the most frequent first"


def _aggregate_posterior(vae: VAE, seen: Seen, path: Path) -> None:
    channels = pictures.active_units(seen.channels, PANELS)
    names, expected = _names(seen, channels), variables.frequencies(vae)
    if seen.usage is None or expected is None:
        draws = seen.draws.flatten(0, 2)[:, channels]
        draws = draws[:: len(draws) // DRAWS + 1]
        latent_figures.densities(draws, *variables.densities(vae, channels), names, path)
        return
    expected = expected.cpu()
    if vae.latent.kind == "codes":
        latent_figures.codebook(seen.usage[channels], expected[channels], names, path)
    else:
        if seen.usage.shape[1] == 2:  # there is room for all
            channels = seen.channels.argsort(descending=True, stable=True).tolist()
        latent_figures.frequencies(seen.usage[channels], expected[channels], names, path)


def _names(seen: Seen, channels: list[int]) -> list[str]:
    """Of these variables, which are those of every place."""
    use = seen.channels
    return [f"$z_{{{n}}}$  {use[n]:.2f}{seen.use.unit} a place" for n in channels]


def _rgb(vae: VAE, x: Tensor) -> Tensor:
    """Images [N, C, H, W] as [N, 3, H, W] on the CPU, in grey unless they have three channels."""
    x = vae.likelihood.intensity(x).float().cpu()
    return x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
