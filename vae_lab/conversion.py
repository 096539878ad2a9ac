"""Data as what a model has for them in its latent space, and the way back, a part at a time."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .data.columns import Column
from .data.row_files import LatentRows
from .inputs import Array, is_picture

if TYPE_CHECKING:
    from .vae import VAE

WHAT = ("mean", "sample", "codes")


def check_what(vae: "VAE", what: str) -> None:
    """Refuses to write codes of numbers."""
    if what not in WHAT:
        raise ValueError(f"what must be one of {', '.join(WHAT)}, got {what!r}")
    if what == "codes" and vae.latent.kind == "numbers":
        raise ValueError(
            f"codes are whole numbers, {type(vae.latent).__name__} has real ones: write the mean"
        )


@torch.no_grad()
def encode(vae: "VAE", x: Array, y: Any = None, what: str = "mean") -> LatentRows:
    """Of data x [B, *X] the posteriors' means or a sample of each, [B, *E]; or of discrete latent
    variables the most probable codes, a whole number each, [B, L] or on a grid [B, h, w, L].

    Args:
        y: of a conditional model, and kept beside z. A label that is not known, or -1, is the one
            that the model infers.
    """
    check_what(vae, what)
    x = vae.images(x)
    vae = vae.given(y, x)
    q, latent = vae.encode(x), vae.latent
    if what == "mean":
        z = q.mean
    elif what == "sample":
        z = q.sample()
    else:
        z = latent.at_places(latent.numbers(latent.mode(q))).round().long()
    if vae.condition is None:
        return LatentRows(_numpy(z))
    return LatentRows(
        _numpy(z), y=_numpy(vae.labels if vae.condition.inferred else torch.as_tensor(y))
    )


@torch.no_grad()
def decode(vae: "VAE", z: Array, y: Any = None) -> Tensor:
    """The data to show, [B, *X], for z [B, *E], or for codes [B, L]; either may be flattened.

    Raises:
        ValueError: z is of another width, or a code is none of the model's.
    """
    latent = vae.latent
    flat = torch.as_tensor(z).to(vae.device, vae.dtype).flatten(1)
    width, size, codes = flat.shape[1], latent.size, latent.num_variables
    if width not in (size, codes):
        also = "" if size == codes else f", or {codes} codes"
        raise ValueError(f"the model has z of {size} numbers{also}, got {width} in a row")
    if not flat.isfinite().all():
        raise ValueError("z must be finite, got NaN or infinite numbers")
    if width == size:
        if latent.kind != "codes":
            latent.check_numbers(flat)
        found = flat.unflatten(-1, latent.event_shape)
    else:
        _check_codes(flat, latent.categories or 0)
        found = latent.from_numbers(flat.round())
    return vae.likelihood.mean(vae.given(y).decode(found))


def _check_codes(codes: Tensor, categories: int) -> None:
    wrong = (codes != codes.round()) | (codes < 0) | (codes >= categories)
    if wrong.any():
        row, variable = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"codes must be whole numbers from 0 to {categories - 1}, got "
            f"{codes[row, variable]:g} for variable {variable}"
        )


def columns_of(vae: "VAE") -> list[Column]:
    """The columns of a table's model; none of another one."""
    columns: list[Column] = getattr(vae.likelihood, "columns", [])
    return columns


def shows_bytes(vae: "VAE") -> bool:
    """Whether its data are pictures that are stored as bytes, and no numbers in units of theirs."""
    return is_picture(vae.shape) and not vae.likelihood.learns_units


def _numpy(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().cpu().numpy()
    return found
