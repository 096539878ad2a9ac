"""task=sample: draws of a model, as a picture of all of them or as a file of data."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vae_lab import VAE, pictures
from vae_lab.conversion import columns_of
from vae_lab.data.values import text_column
from vae_lab.inputs import is_picture
from vae_lab.memory import MEMORY, images_at_once

from .data_files import Progress, begun, data_writer
from .show import say
from .trained import load_vae, on_device

ROW = 8  # draws of each label, and without labels so many rows of them


def run(config: DictConfig) -> None:
    """Data for draws of the prior, in `sample.out`, or else in `run_dir` or beside the model; of a
    conditional model equally many of each label."""
    asked = config.sample
    with begun(config) as progress:
        vae, out = _model_and_file(config)
        kinds = _kinds(vae, OmegaConf.to_container(asked)["y"], asked.count)
        rows = ROW if kinds is None or len(kinds) == 1 else len(kinds)
        count = asked.count or rows * ROW
        y = None if kinds is None else kinds[torch.arange(count) * len(kinds) // count]
        draws = _draws(vae, y, count, asked.temperature, progress)
        if out.suffix.lower() == ".png":
            x = torch.cat([x for x, *_ in draws])
            columns = math.ceil(math.sqrt(count)) if asked.count else ROW
            pictures.save(pictures.grid(vae.likelihood.intensity(x), columns), out)
        else:
            with data_writer(vae, out, count, "sample.out", vae.condition) as write:
                for drawn in draws:
                    write(*drawn)
    say(f"samples  {count}: {out}")


def _model_and_file(config: DictConfig) -> tuple[VAE, Path]:
    if config.sample.out is None:
        vae, folder = load_vae(config)
        if is_picture(vae.shape):
            out = folder / "samples.png"
        else:
            text = text_column(columns_of(vae)) is not None
            out = folder / ("samples.csv" if text else "samples.npy")
    else:
        vae, out = VAE.from_pretrained(config.checkpoint), Path(config.sample.out).expanduser()
        if out.suffix.lower() == ".png" and not is_picture(vae.shape):
            raise ValueError(
                f"{out} would be a picture, the data has the shape {list(vae.shape)}: type "
                "sample.out=FILE.npy, or of a table .csv or .parquet"
            )
    return on_device(config, vae), out


def _kinds(vae: VAE, y: Any, count: int | None) -> Tensor | None:
    """The different y to draw for, [K] or [K, A]; None: the model is not conditional."""
    if vae.condition is None:
        if y is not None:
            raise ValueError(
                "sample.y is of conditional models, and this one is none: leave it out, or train "
                "one with model.condition=labels"
            )
        return None
    if y is None:
        return vae.condition.examples(count or pictures.LABELS)
    found = vae.condition.as_y(y, vae)
    return found if found.ndim > vae.condition.axes else found[None]


def _draws(
    vae: VAE, y: Tensor | None, count: int, temperature: float, progress: Progress
) -> Iterator[tuple[Tensor, range, Tensor | None]]:
    """Data, the numbers of their rows, and their y, as many at a time as fit into memory."""
    size = images_at_once(vae, MEMORY)
    for first in range(0, count, size):
        rows = range(first, min(first + size, count))
        part = None if y is None else y[rows.start : rows.stop]
        x = vae.sample(len(rows), part, temperature).cpu()
        yield x, rows, None if part is None else part.cpu()
        progress("sample", rows.stop, count)
