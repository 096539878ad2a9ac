"""task=encode, task=decode and task=impute: files of data, of latent variables, and back.

All is done part by part, so that neither the data nor the result have to fit into memory.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from torch import Tensor

from commandline.quoting import as_typed
from datamodules.base import DataModule, Part
from vae_lab import VAE, conversion
from vae_lab.conversion import columns_of
from vae_lab.data import Batch
from vae_lab.data.array_files import is_table
from vae_lab.data.row_files import LatentFile, latent_writer, writer
from vae_lab.data.rows import ArrayRows, TableRows
from vae_lab.data.values import fill_array, fill_table
from vae_lab.memory import MEMORY, images_at_once

from .data_files import Progress, begun, data_writer
from .show import say
from .trained import Trained, on_device, trained


def encode(config: DictConfig) -> None:
    """The posteriors of a split of the data, in the order of their file."""
    with begun(config) as progress:
        out = Path(config[config.task].out).expanduser()
        found = trained(config)
        vae, data = found.vae, _data(found, config)
        conversion.check_what(vae, config.encode.what)
        parts = data.in_order(config.encode.split)
        _check_out("encode", out, parts)
        count = sum(len(part.numbers) for part in parts)
        with latent_writer(out, count) as write:
            for part, rows, batch in _batches(data, parts, progress):
                x, y = _of_batch(vae, batch)
                z = conversion.encode(vae, x, y, config.encode.what)
                some = part.rows is not None  # or a row's number is its place
                write(z._replace(row=rows.numpy()) if some else z)
    say(f"encoded  {count} {data.unit}: {out}")
    model = as_typed("checkpoint", found.typed)
    file = as_typed("decode.file", str(out))
    say(f"back     python train.py task=decode {model} {file} decode.out=FILE")


def decode(config: DictConfig) -> None:
    """The data that latent variables in a file stand for."""
    with begun(config) as progress:
        out = Path(config[config.task].out).expanduser()
        vae = on_device(config, VAE.from_pretrained(config.checkpoint))
        file = LatentFile(Path(config.decode.file).expanduser())
        if out.resolve() == file.path.resolve():
            raise ValueError(f"decode.out={out} is decode.file itself: type another file")
        done = 0
        with data_writer(vae, out, file.count, "decode.out") as write:
            for part in file.parts(images_at_once(vae, MEMORY)):
                try:
                    x = conversion.decode(vae, part.z, part.y)
                except ValueError as error:
                    last = done + len(part.z) - 1
                    raise ValueError(f"{file.path}, rows {done} to {last}: {error}") from None
                numbers = range(done, done + len(part.z)) if part.row is None else part.row
                write(x.cpu(), numbers, None)
                done += len(part.z)
                progress("decode", done, file.count)
    say(f"decoded  {done} rows: {out}")


def impute(config: DictConfig) -> None:
    """A file of data with its missing values filled, and all others as they were."""
    asked = config.impute
    with begun(config) as progress:
        out = Path(config[config.task].out).expanduser()
        found = trained(config)
        vae, data = found.vae, _data(found, config)
        if not getattr(vae.likelihood, "missing", False):
            raise ValueError(
                f"{found.typed} knows no missing values: train it on data that has some, or with "
                "likelihood.missing=true"
            )
        parts, columns = _to_fill(data, asked.split, out), columns_of(vae)
        fill: Callable[..., Any] = fill_table if is_table(out) else fill_array
        holes, count = 0, sum(len(part.numbers) for part in parts)
        with writer(out, count) as write:
            for part, rows, batch in _batches(data, parts, progress):
                x, y = _of_batch(vae, batch)
                missing, filled = x.isnan(), vae.impute(x, asked.samples, asked.draw, y)
                original = cast(Any, part.source).original(rows)
                write(fill(original, columns, missing.cpu().numpy(), filled.cpu().numpy()))
                holes += int(missing.sum())
    say(f"imputed  {holes} values of {count} {data.unit}: {out}")


def _data(found: Trained, config: DictConfig) -> DataModule:
    """The data, which knows where each row comes from."""
    data = found.datamodule
    if not isinstance(data, DataModule):
        raise ValueError(
            f"task={config.task} needs data that derive from datamodules.base.DataModule, "
            f"{type(data).__name__} does not"
        )
    data.prepare_data()
    return data


def _batches(
    data: DataModule, parts: list[Part], progress: Progress
) -> Iterator[tuple[Part, Tensor, Batch]]:
    """Batches in order: the part that each is of, and the numbers of its rows in their source."""
    total, done = sum(len(part.numbers) for part in parts), 0
    for part in parts:
        numbers, at = part.numbers, 0
        with closing(data.loader_of(part)) as loader:
            for batch in loader:
                yield part, numbers[at : at + len(batch.x)], batch
                at, done = at + len(batch.x), done + len(batch.x)
                progress("rows", done, total)


def _of_batch(vae: VAE, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """x, and all that is known of y: a label that the model would infer may be known here."""
    return batch.x.to(vae.device), None if vae.condition is None else batch.y


def _check_out(task: str, out: Path, parts: list[Part]) -> None:
    """Refuses to write over the data."""
    read = [getattr(part.source, "path", None) for part in parts]
    if any(path is not None and out.resolve() == path.resolve() for path in read):
        raise ValueError(f"{task}.out={out} is the data itself: type another file")


def _to_fill(data: DataModule, split: str | None, out: Path) -> list[Part]:
    """The parts of files with missing values.

    Raises:
        ValueError: the data does not come from files, or what is asked for is one of them.
    """
    if split is not None:
        parts = data.in_order(split)
    elif getattr(data, "test", None) is not None:
        parts = data.in_order("test")
    else:
        parts = data.in_order("all")[:1]
    _check_out("impute", out, parts)
    for part in parts:
        if not isinstance(source := part.source, ArrayRows | TableRows):
            raise ValueError(
                "task=impute fills files: type data=arrays data.train=FILE, got "
                f"{type(data).__name__}"
            )
        if is_table(out) != is_table(source.path):
            known = ".csv or .parquet" if is_table(source.path) else ".npy"
            raise ValueError(f"impute.out must be {known}, as {source.path}, got {out}")
    return parts
