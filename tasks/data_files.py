"""What the tasks that write files share: how they begin, and data of a model as a file."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from commandline.refusals import check_ranges, check_task
from vae_lab import VAE
from vae_lab.conditions import Condition
from vae_lab.conversion import columns_of, shows_bytes
from vae_lab.data.array_files import is_table
from vae_lab.data.row_files import LatentRows, latent_writer, writer
from vae_lab.data.tables import to_frame
from vae_lab.data.values import text_column, to_array
from vae_lab.optional import needs
from vae_lab.storage.files import whole

from .bars import bars
from .machine import check_devices

if TYPE_CHECKING:
    import pyarrow

Progress = Callable[[str, int, int], None]
Write = Callable[[Tensor, Iterable[int], Any], object]


@contextmanager
def begun(config: DictConfig) -> Iterator[Progress]:
    """What they check first, and a bar. SIGTERM is an error meanwhile, so that what there is of a
    file is removed."""
    check_task(config)
    check_ranges(config)
    check_devices(config)
    torch.manual_seed(config.seed)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with bars("rows") as progress:
            yield progress
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def data_writer(
    vae: VAE, out: Path, count: int, setting: str, condition: Condition | None = None
) -> Iterator[Write]:
    """Takes data [B, *X] as the model has them, the numbers of their rows, and y [B] or [B, A].

    Args:
        count: of all rows.
        setting: where the file was typed, for messages.
        condition: whose y is written too: as columns of a table, or beside FILE.npy as FILE.y.npy;
            None: y is None.

    Raises:
        ValueError: such a file cannot hold such data.
    """
    columns, as_bytes = columns_of(vae), shows_bytes(vae)
    if not out.suffix:
        if not as_bytes or vae.shape[0] not in (1, 3):
            raise ValueError(
                f"a folder is for grey or colour pictures of bytes, the data has the shape "
                f"{list(vae.shape)}: type {setting}=FILE"
            )
        if out.exists():
            raise ValueError(f"{setting}={out} exists already: type a new folder")
        with whole(out) as folder:
            folder.mkdir()
            yield lambda x, numbers, _: _save(_bytes(x), numbers, folder)
    elif is_table(out):
        if not columns or len(vae.shape) != 1:
            raise ValueError(
                f"{out.suffix} is for tables, the data has the shape {list(vae.shape)}: type "
                f"{setting}=FILE.npy"
            )
        with writer(out, count) as write:
            yield lambda x, _, y: write(_with(to_frame(x, columns), y, condition))
    else:
        if (name := text_column(columns)) is not None:
            raise ValueError(f"column {name!r} holds text: type {setting}=FILE.csv or .parquet")

        def array(x: Tensor) -> np.ndarray:
            return _bytes(x) if as_bytes else to_array(x.numpy(), columns)

        if condition is None:
            with writer(out, count) as write:
                yield lambda x, *_: write(array(x))
        else:
            with latent_writer(out, count) as write:
                yield lambda x, _, y: write(LatentRows(array(x), y=y.numpy()))


def _bytes(x: Tensor) -> np.ndarray:
    """Pictures in [0, 1] as they are stored."""
    found: np.ndarray = x.mul(255).round().clamp(0, 255).byte().numpy()
    return found


def _save(pictures: np.ndarray, numbers: Iterable[int], folder: Path) -> None:
    """PNG files by the numbers of the rows."""
    for picture, number in zip(pictures, numbers, strict=True):
        pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number:08}.png")


def _with(table: "pyarrow.Table", y: Tensor | None, condition: Condition | None) -> "pyarrow.Table":
    """A table with columns of y: attributes by their names, or labels as the column label."""
    if y is None:
        return table
    with needs("tables", __name__):
        import pyarrow
    names: list[Any] = getattr(condition, "names", None) or []
    if y.ndim > 1:
        added = dict(zip(names or [f"y{a}" for a in range(y.shape[1])], y.T.numpy(), strict=True))
    elif names:
        of_one_type = len({type(name) for name in names}) == 1
        added = {"label": [names[k] if of_one_type else str(names[k]) for k in y.tolist()]}
    else:
        added = {"label": y.numpy()}
    for name, values in added.items():
        while name in table.column_names:
            name += "_"
        table = table.append_column(name, pyarrow.array(values))
    return table
