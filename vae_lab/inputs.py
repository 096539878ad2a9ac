"""Checks of the inputs of a VAE: arrays become tensors, mistakes become errors of one line."""

import math
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
Shape = tuple[int, ...]  # of one datum; of an image C, H, W
NUMBERED = "number the classes 0, 1, 2, ..., as numpy.unique(y, return_inverse=True)[1] does"


def is_picture(shape: Shape) -> bool:
    """Whether a datum of this shape is an image [C, H, W], and no vector [D] or series [T, D]."""
    return len(shape) == 3


class Placed(Protocol):
    """Anything that has a device and a type: a model, or a tensor."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


def as_data(
    x: Array,
    shape: Shape,
    like: Placed,
    any_size: bool = False,
    columns: "list[dict[str, Any]] | None" = None,
) -> Tensor:
    """Data [B, *X] of `shape` (*X); reads no values.

    Args:
        like: the model: an array takes its type and device, a tensor must be there.
        any_size: the model could take pictures of any size, by :meth:`vae_lab.VAE.at`.
        columns: of the last axis, by whose names a frame is read, and which may be whole numbers.

    Raises:
        ValueError: x has another shape, is elsewhere, or holds no floats. Bytes would have to be
            divided by 255 and bits must not be, so neither is done in silence.
    """
    if columns is None:
        x = as_floats("x", x, like)
    else:
        x = _of_columns(x, like, columns)
    if x.shape[1:] != shape:
        raise ValueError(wrong_shape(tuple(x.shape), shape, any_size, columns))
    return x


def _of_columns(x: Any, like: Placed, columns: "list[dict[str, Any]]") -> Tensor:
    from .data.tables import as_named, of_named

    named = as_named(x, columns, where="x")
    if named is not None:
        x = of_named(named, columns, where="x").x.to(like.device)
    return as_tensor("x", x, like).to(like.dtype)


def joined(features: Tensor, vector: Tensor, places: int = 0) -> Tensor:
    """Features and a vector of the same data beside each other, [*B, F] and [*B, C] -> [*B, F + C].

    Args:
        places: the axes of a grid between B and F, at each place of which is the same vector.
    """
    data = features.shape[: features.ndim - 1 - places]
    try:
        batch = torch.broadcast_shapes(data, vector.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"y must be one, or one for each datum, got {list(vector.shape[:-1])} for {list(data)}"
        ) from None
    vector = vector.reshape(*vector.shape[:-1], *[1] * places, vector.shape[-1])
    shape = (*batch, *features.shape[len(data) : -1])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in (features, vector)], -1)


def as_floats(name: str, x: Array, like: Placed) -> Tensor:
    """A tensor of floats, where the model is."""
    tensor = as_tensor(name, x, like)
    if x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f":
        return tensor
    advice = f"type {name} / 255 for bytes, {name} * 1.0 for bits"
    if isinstance(x, Tensor) and x.is_complex():
        advice = f"type torch.view_as_real({name}) for two numbers each"
    raise ValueError(f"{name} must hold floats, got {x.dtype}: {advice}")


def as_tensor(name: str, x: Array, like: Placed) -> Tensor:
    """The tensor itself; or an array's numbers, of the model's type and where the model is."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":  # no objects, no text, no dates
        # A copy in the machine's order, which torch can take: neither backwards nor read-only.
        floats = np.ma.filled(x.astype(np.float64, order="C"), math.nan)
        return torch.from_numpy(floats).to(like.device, like.dtype)
    if not isinstance(x, Tensor):
        kind = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"{name} must be a tensor or a numpy array of floats, got {kind}")
    check_dense(name, x)
    if x.device != like.device:
        where = str(like.device)
        raise ValueError(
            f"{name} is on {x.device}, the model on {where}: type {name}.to({where!r})"
        )
    return x


def as_numbers(name: str, values: Any) -> np.ndarray:
    """A copy of labels or attributes as int64, or as float64 if they are floats: torch takes no
    negative strides and no other order of bytes."""
    from .data.columns import unmasked

    array = unmasked(np.asanyarray(as_numpy(name, values)))
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, got {array.dtype}: {NUMBERED}")
    return np.array(array, np.float64 if array.dtype.kind == "f" else np.int64, order="C")


def as_numpy(name: str, values: Any) -> Any:
    """A tensor of any type and device as an array; all else as it is."""
    if not isinstance(values, Tensor):
        return values
    check_dense(name, values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def check_dense(name: str, x: Any) -> None:
    """Refuses a sparse tensor, which hardly anything takes."""
    if isinstance(x, Tensor) and x.layout != torch.strided:
        raise ValueError(f"{name} is a sparse tensor: type {name}.to_dense()")


def check_count(name: str, value: int) -> int:
    """A positive integer as Python's own; refuses all else."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def readable(x: Tensor) -> Tensor | None:
    """x, of which Python can ask values; where vmap maps over it, all of it.

    None where it has none to ask for: without data, and in a graph that is being recorded.
    """
    if torch.compiler.is_compiling() or x.is_meta or _is_captured(x):
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def wrong_shape(
    got: tuple[int, ...],
    shape: Shape,
    any_size: bool,
    columns: "list[dict[str, Any]] | None" = None,
) -> str:
    """What to say of data whose shape is not [B, *X]; for the arguments see :func:`as_data`."""
    from .data.columns import positions

    sizes, hint = ", ".join(map(str, shape)), ""
    kept = positions(columns or [])
    if got == shape:
        hint = ": type x[None] for one datum"
    elif got[1:] == shape[1:] and shape[0] == 1:
        hint = ": type x[:, None]"
    elif len(shape) == 3 and got[1:] == (*shape[1:], shape[0]):
        hint = ": type x.permute(0, 3, 1, 2), or of an array x.transpose(0, 3, 1, 2)"
    elif any_size and len(got) == 4 and got[1] == shape[0]:
        hint = f": type vae.at{got[1:]} for the model of this size"
    elif got[1:] == (math.prod(shape),):
        hint = f": type x.reshape(-1, {sizes})"
    elif kept != [*range(len(kept))] and got[-1:] > (max(kept),):
        hint = f": type x[..., {kept}], as its other columns were left out"
    return f"x must have the shape [B, {sizes}], got {list(got)}{hint}"
