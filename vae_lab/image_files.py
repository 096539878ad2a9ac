"""Picture files as tensors of a model's shape."""

import io
import warnings

import numpy as np
import torch
from torch import Tensor

from .optional import needs

with needs("train", __name__):
    from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB"}
MAX_BYTES = 20 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that runs a program
DEEP = "more than 8 bits a channel"  # Pillow would clip these to white


def fit(picture: Image.Image, shape: tuple[int, ...]) -> Tensor:
    """A picture, scaled until its shorter side fits, and the middle of it, uint8 [C, H, W].

    Raises:
        ValueError: it has more than 8 bits a channel.
    """
    channels, height, width = shape
    if picture.mode[0] in "IF":
        raise ValueError(DEEP)
    picture = ImageOps.exif_transpose(picture).convert(MODES[channels])
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)


def read_upload(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """A file that somebody uploaded, fitted to this shape, uint8 [C, H, W].

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
            return _decode(data, shape)
    except Image.UnidentifiedImageError:
        raise ValueError(f"it is no picture of a known format: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"it has more than {limit} million pixels: scale it down first") from None
    except _Refused:
        raise
    except Exception as error:  # there is no kind that none of Pillow's decoders raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it is damaged and cannot be read ({reason})") from None


class _Refused(ValueError):
    """What is not to be taken for damage."""


def _decode(data: bytes, shape: tuple[int, ...]) -> Tensor:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        # A camera's JPEG may hold a second, small picture for its screen.
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise _Refused("it is animated or has several pages: save one of them as a picture")
        if picture.mode.startswith("I;16"):
            high = np.asarray(picture) >> 8
            return fit(Image.fromarray(high.astype(np.uint8)), shape)
        if picture.mode[0] in "IF":
            raise _Refused(f"it has {DEEP}: save it with 8 or 16")
        return fit(picture, shape)
