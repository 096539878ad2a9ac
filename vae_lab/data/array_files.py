"""Arrays and tables in files; what the format lets be mapped into memory is not read before use."""

import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..optional import needs

if TYPE_CHECKING:
    import pyarrow

Arrays = Mapping[str, np.ndarray]

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
TABLE_SUFFIXES = (".csv", ".parquet")
SUFFIXES = (*ARRAY_SUFFIXES, *TABLE_SUFFIXES)
SEPARATORS = ",;\t"
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")  # in a CSV
MAX_BLOCK = 2**30  # bytes of a CSV in which the types of its columns are found
# The numbers of a safetensors file, of those that numpy has.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?"}
DTYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


def check_file(name: str, path: Path) -> None:
    """Refuses a file that is not there, or of a format that is not known; reads nothing.

    Args:
        name: of the setting that names it, for messages.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{name} must be a file {' '.join(SUFFIXES)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no file {path}")


def is_table(path: Path) -> bool:
    """Whether a file holds columns with names, and not arrays."""
    return path.suffix.lower() in TABLE_SUFFIXES


def open_arrays(path: Path) -> Arrays:
    """The arrays in a file, by their names; of a .npy, or of a tensor alone, it is `x`.

    They are mapped into memory, so that an element is read when it is used, but for a .npz that is
    compressed. What is written into them does not reach the file.

    Raises:
        ValueError: it holds no arrays, or objects that only a program could make of it.
    """
    try:
        return READERS[path.suffix.lower()](path)
    except (EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({_one_line(error)})") from None


def main_array(arrays: Arrays, path: Path) -> str:
    """The name of the array that is the data: `x`, or the only one."""
    if "x" in arrays:
        return "x"
    if len(arrays) != 1:
        held = ", ".join(arrays) or "none"
        raise ValueError(f"{path} must hold one array, or the data under the name x, got {held}")
    return next(iter(arrays))


def read_table(
    path: Path, texts: Sequence[str] = (), known: Sequence[str] | None = None
) -> "pyarrow.Table":
    """The columns of a .csv or .parquet file, in memory.

    Args:
        texts: columns of a .csv file that are text, whatever their values look like.
        known: the others of a .csv file are text, as it is written; None: there are no others.
    """
    with needs("tables", __name__):
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        csv = path.suffix.lower() == ".csv"
        table = _csv(path, pyarrow, texts, known) if csv else pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {_one_line(error)}") from None
    if csv and any(map(pyarrow.types.is_binary, table.schema.types)):
        raise ValueError(f"{path} is not in UTF-8: save it as that")
    names = table.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has several columns of the name {twice[0]!r}: rename them")
    if names and all(map(_is_number, names)):
        raise ValueError(f"{path} must name its columns in its first line, got {', '.join(names)}")
    if not table.num_rows:
        raise ValueError(f"{path} has no rows")
    return table


def _csv(
    path: Path, arrow: Any, texts: Sequence[str], known: Sequence[str] | None
) -> "pyarrow.Table":
    """The types are found in the whole file, and not in its first part only."""
    csv, text = arrow.csv, arrow.string()
    with path.open("rb") as file:
        first = re.sub('"[^"]*"', "", file.readline().decode(errors="replace"))
    block = min(max(path.stat().st_size, 1), MAX_BLOCK)
    reading = {
        "read_options": csv.ReadOptions(block_size=block),
        "parse_options": csv.ParseOptions(delimiter=max(SEPARATORS, key=first.count)),
    }
    types = csv.ConvertOptions(null_values=MISSING, strings_can_be_null=True)
    types.column_types = dict.fromkeys(texts, text)
    table = csv.read_csv(path, convert_options=types, **reading)
    names = table.column_names
    others = [] if known is None else [name for name in names if name not in known]
    if others:
        as_written = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
        as_written.include_columns = others
        as_written.column_types = dict.fromkeys(others, text)
        written = csv.read_csv(path, convert_options=as_written, **reading)
        for name in others:
            table = table.set_column(names.index(name), name, written[name])
    return table


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _npy(path: Path) -> Arrays:
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        return {"x": np.load(path, mmap_mode="c", allow_pickle=False)}
    except ValueError as error:
        raise ValueError(f"{path} must hold an array of numbers: {_one_line(error)}") from None


def _npz(path: Path) -> Arrays:
    """Those that are not compressed lie in the file as they are, behind a header of their own."""
    with zipfile.ZipFile(path) as packed, path.open("rb") as file:
        members = [m for m in packed.infolist() if m.filename.endswith(".npy")]
        found = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED:
                found[name] = _stored(path, file, member)
            else:
                with packed.open(member) as inner:
                    found[name] = np.lib.format.read_array(inner, allow_pickle=False)
    return found


def _stored(path: Path, file: Any, member: zipfile.ZipInfo) -> np.ndarray:
    file.seek(member.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(member.header_offset + 30 + name + extra)
    first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return _mapped(path, dtype, file.tell(), shape, "F" if fortran else "C")


def _safetensors(path: Path) -> Arrays:
    """Eight bytes: the length of a description in JSON, which follows; then the numbers."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path} is damaged and cannot be read (its header is too long)")
        described = json.loads(file.read(length))
    found = {}
    for name, about in described.items():
        if name == "__metadata__":
            continue
        if about["dtype"] not in DTYPES:
            raise ValueError(f"{path} holds {name} as {about['dtype']}: save it as float32")
        begin = 8 + length + about["data_offsets"][0]
        found[name] = _mapped(path, np.dtype(DTYPES[about["dtype"]]), begin, about["shape"])
    return found


def _pt(path: Path) -> Arrays:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a pickle's can be any
        reason = _one_line(error).partition(". ")[0]
        raise ValueError(f"{path} must hold tensors and nothing else: {reason}") from None
    tensors = {"x": held} if isinstance(held, torch.Tensor) else held
    if not isinstance(tensors, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(
            f"{path} must hold a tensor, or tensors by name, got {type(held).__name__}"
        )
    return {str(name): _as_array(tensor) for name, tensor in tensors.items()}


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _mapped(path: Path, dtype: np.dtype, offset: int, shape: Any, order: Any = "C") -> np.ndarray:
    if dtype.hasobject:
        raise ValueError(f"{path} must hold an array of numbers, got objects")
    size = math.prod(shape) * dtype.itemsize
    if offset + size > path.stat().st_size:
        raise ValueError(f"{path} is damaged and cannot be read (it ends too early)")
    if not size:  # there is nothing to map
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "c", offset, tuple(shape), order)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _pt,
}
