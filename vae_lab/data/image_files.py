"""Picture files as tensors of a model's shape: the one way in which they are read."""

import difflib
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..optional import needs

with needs("train", __name__):
    from PIL import Image, ImageOps
    from PIL.ImageColor import colormap, getrgb

MODES = {1: "L", 3: "RGB"}
MAX_BYTES = 20 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that runs a program
SCALED_KEYS = {"L;2": 85, "L;4": 17}  # what Pillow makes of the grey of few bits
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # in a TIFF


class Refused(ValueError):
    """A picture that is whole, but cannot be taken as it is."""


def read(
    file: Path | BinaryIO,
    shape: tuple[int, ...],
    *,
    background: str | Sequence[int] = "white",
    value_range: Sequence[float] | None = None,
) -> Tensor:
    """A picture file as bytes of a model's shape, uint8 [C, H, W].

    The picture is turned as its EXIF data says, laid over the background where it is transparent,
    scaled until its shorter side fits, and its middle is cut out. Of several pages or frames it is
    the first.

    Args:
        file: its path, or an open file.
        shape: (C, H, W); one channel is grey, three are colour.
        background: a colour's name, or its red, green and blue, 0 to 255.
        value_range: the values that become black and white, of grey pictures with more than 8 bits;
            what is outside is clipped. By default the whole range of 16 bits, so that a value
            becomes value / 257, rounded. Floats and integers of 32 bits cannot do without.
    """
    with Image.open(file) as picture:
        return _fit(picture, shape, background, value_range)


def rgb(background: str | Sequence[int]) -> tuple[int, ...]:
    """A colour's red, green and blue, 0 to 255.

    Raises:
        ValueError: it is none.
    """
    try:
        found = getrgb(background) if isinstance(background, str) else background
    except ValueError:
        found = ()
    if len(found) == 3 and all(type(value) is int and 0 <= value <= 255 for value in found):
        return tuple(found)
    close = difflib.get_close_matches(str(background), colormap, 1)
    hint = f"; did you mean {close[0]}" if close else ""
    raise ValueError(
        "background must be a colour's name or [RED,GREEN,BLUE], each from 0 to 255, got "
        f"{background!r}{hint}"
    )


def check_range(value_range: Sequence[float] | None) -> None:
    """Refuses two numbers that cannot be the values of black and white."""
    if value_range is None:
        return
    if len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf:
        raise ValueError(f"value_range must be [LOWEST,HIGHEST], got {value_range!r}")


def brightest(file: Path | BinaryIO) -> tuple[float, float] | None:
    """The largest value in a grey picture of more than 8 bits, and the largest that its format can
    hold, infinite if it holds any; None of another picture."""
    with Image.open(file) as picture:
        stored = _stored(picture)
        if picture.mode[0] not in "IF":
            return None
        values, limit = _values(picture, stored)
        return float(values.max()), limit


def read_upload(data: bytes, shape: tuple[int, ...], **pixels: Any) -> Tensor:
    """A file that somebody uploaded, as :func:`read` reads it with `pixels`, its own settings.

    Raises:
        ValueError: what is wrong with it, and what would do.
    """
    if shape[0] not in MODES:
        raise ValueError(f"the model's images have {shape[0]} channels: no picture file has those")
    if not data:
        raise ValueError("the file is empty")
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file has {len(data) >> 20} MB, at most {MAX_BYTES >> 20} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it makes the best of
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(data, shape, **pixels)
    except Image.UnidentifiedImageError:
        raise ValueError(f"it is no picture of a known format: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"it has more than {limit} million pixels: scale it down first") from None
    except Refused:
        raise
    except Exception as error:  # there is no kind that none of Pillow's decoders raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it is damaged and cannot be read ({reason})") from None


def _decode(data: bytes, shape: tuple[int, ...], **pixels: Any) -> Tensor:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        # A camera's JPEG may hold a second, small picture for its screen.
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise Refused("it is animated or has several pages: save one of them as a picture")
        return _fit(picture, shape, **pixels)


class _Stored(NamedTuple):
    """A file's own description of its pixels, which Pillow drops when it decodes them.

    Attributes:
        layout: Pillow's name for their bits, such as "RGB;16B"; empty where it has none.
        most: the largest value that a PGM declares.
    """

    layout: str
    most: float


def _stored(picture: Image.Image) -> _Stored:
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    declared = len(parts) == 2 and picture.format == "PPM"
    return _Stored(parts[0] if isinstance(parts[0], str) else "", parts[1] if declared else 65535)


def _fit(
    picture: Image.Image,
    shape: tuple[int, ...],
    background: str | Sequence[int] = "white",
    value_range: Sequence[float] | None = None,
) -> Tensor:
    channels, height, width = shape
    stored = _stored(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode[0] in "IF":
        picture = _bytes(picture, stored, value_range)
    elif value_range is not None and ";16" in stored.layout:
        raise Refused(
            "of its 16 bits a channel only the upper 8 are read, as it has colours or is "
            "transparent; data.value_range needs it in grey"
        )
    if picture.has_transparency_data:
        picture = _over(background, picture, stored)
    picture = picture.convert(MODES[channels])
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)


def _bytes(
    picture: Image.Image, stored: _Stored, value_range: Sequence[float] | None
) -> Image.Image:
    """A grey picture of more than 8 bits, with 8, and with its transparent value as alpha."""
    values, limit = _values(picture, stored)
    if value_range is None and math.isinf(limit):
        kind = "floats" if picture.mode == "F" else "integers of 32 bits or with a sign"
        raise Refused(
            f"it holds {kind}, and which are black and white is not known: save it with 8 or 16 "
            "bits; data=image_folder takes data.value_range=[LOWEST,HIGHEST]"
        )
    if np.isnan(values).any():
        raise Refused("some of its pixels are not a number")
    transparent = picture.info.get("transparency")
    alpha = None if transparent is None else Image.fromarray(values != transparent).convert("L")
    low, high = value_range or (0, limit)
    grey = Image.fromarray(_scaled(values, low, high))
    if getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = ImageOps.invert(grey)
    return grey if alpha is None else Image.merge("LA", (grey, alpha))


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The values as bytes, 0 at `low` and 255 at `high`; overwrites them on the way."""
    values -= low
    values *= 255 / (high - low)
    return values.clip(0, 255, out=values).round(out=values).astype(np.uint8)


def _values(picture: Image.Image, stored: _Stored) -> tuple[np.ndarray, float]:
    """The values as they are in the file, and the largest that its format can hold.

    The latter is infinite if the format can hold any value.
    """
    values = np.asarray(picture)
    if stored.layout == "I;32N":  # Pillow takes them for signed
        values = values.view(np.uint32)
    values = values.astype(np.float64)
    if picture.format == "PPM" and picture.mode == "I":
        values *= stored.most / 65535  # to which Pillow has scaled them
        return values, stored.most
    if picture.mode.startswith("I;16") or picture.format == "PNG":
        return values, 4095 if stored.layout == "I;12" else 65535
    return values, math.inf


def _over(background: str | Sequence[int], picture: Image.Image, stored: _Stored) -> Image.Image:
    """A picture that is transparent in parts, on a colour."""
    _scale_key(picture, stored.layout)
    if picture.mode == "La":  # from which there is no other way
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, rgb(background))
    return Image.alpha_composite(canvas, picture)


def _scale_key(picture: Image.Image, layout: str) -> None:
    """The one transparent colour of a PNG, in the bytes that Pillow has made of the others."""
    key = picture.info.get("transparency")
    if isinstance(key, int) and layout in SCALED_KEYS and key * SCALED_KEYS[layout] <= 255:
        picture.info["transparency"] = key * SCALED_KEYS[layout]
    elif isinstance(key, tuple) and ";16" in layout:
        picture.info["transparency"] = tuple(value >> 8 for value in key)
