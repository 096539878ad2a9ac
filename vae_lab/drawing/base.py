"""What the figures of all kinds of data have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.distributions import Distribution

from .. import pictures, variables
from ..vae import VAE
from ..variables import Use
from . import latent_figures

FIRST = slice(1)  # of the data


class Drawn(NamedTuple):
    """A picture: what a reader is told that it shows."""

    title: str
    text: str


class Latents(NamedTuple):
    """The test data in the latent; the variables that are shown are by descending use."""

    q: Distribution  # of every datum, batch shape [N]
    use: Use  # of each variable
    units: list[int]  # those in use, R
    names: list[str]  # of these
    label_names: Sequence[Any] | None  # None: they are numbers


class Figures:
    """The figures that show data of one kind, such as images or the rows of a table.

    Attributes:
        captions: of what it draws, by the names of the files.
        most: data to draw from while the model trains; None: no more than are shown.
    """

    captions: ClassVar[Mapping[str, Drawn]]
    most: ClassVar[int | None] = None

    def draw(self, vae: VAE, x: Tensor, y: Tensor, folder: Path, count: int = 8) -> list[Path]:
        """Writes samples, reconstructions and interpolations.

        Args:
            x: data [N, *X], where the model is; none where there is only a model.
            y: their labels or attributes.
            count: of the data beside each other, at most.
        """
        raise NotImplementedError

    def traversals(self, vae: VAE, x: Tensor, latents: Latents, path: Path) -> None:
        """What becomes of the first datum as its latent variables move.

        Args:
            vae: given y of the data.
        """
        raise NotImplementedError

    def codes(self, vae: VAE, latents: Latents, usage: Tensor, path: Path) -> None:
        """What each value of discrete variables adds to the data, where the traversals show less.

        Args:
            usage: how often each value of each variable is used, [L, V].
        """

    def plane(self, vae: VAE, latents: Latents, y: Tensor, path: Path) -> None:
        """Where the data lies in a latent of two dimensions: the posteriors' means."""
        points = latents.q.mean.flatten(1).cpu()
        names = latents.label_names
        latent_figures.scatter(points, y, "means of q(z | x)", path, axes=True, names=names)

    def png(self, vae: VAE, data: Mapping[str, Tensor], others: Tensor) -> bytes:
        """One datum in different versions [*X], by what they are called, as one PNG.

        Args:
            others: data [N, *X], whose range the axes have.
        """
        raise NotImplementedError


def ways(vae: VAE, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """What is expected of data on paths through the latent, from each of x [B, *X] to the next, the
    last to the first: [steps, B, *E]."""
    known, x1 = vae.own_y(y), x.roll(-1, 0)
    y1 = None if known is None else known.roll(-1, 0)
    first, last = vae.given(known, x), vae.given(y1, x1)
    between = first.towards(last, steps)
    z = vae.latent.interpolate(first.mode(x), last.mode(x1), steps)
    return vae.likelihood.expected(between.decode(z))


def moves(vae: VAE, latents: Latents, most: int) -> list[Tensor]:
    """What is expected of the first datum, with each of the variables in use at each of its
    values, as many as `most`: [V, *E] each.

    Args:
        vae: given y of the data.
    """
    first, z = vae.rows(FIRST), vae.latent.mode(latents.q)[0]
    values = variables.values(vae)
    moved = pictures.each(vae, z, latents.units[:most], values)
    return [vae.likelihood.expected(first.decode(z_set)) for z_set in moved]
