"""Files that are written, and latent variables in files that are read, part by part: neither they
nor what is made of them need fit into memory.

A .csv or .parquet file has the columns z0, z1, ..., and where there are such also `row` and `y` (of
attributes y0, y1, ...). Beside a file z.npy of z alone these two are z.row.npy and z.y.npy.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..optional import needs
from ..storage.files import whole
from .array_files import is_table, open_arrays

if TYPE_CHECKING:
    import pyarrow

BESIDE = (
    "row",
    "y",
)  # which rows these are, and what the model was given of them
BUFFER = 2**25  # bytes of a table in a row group
NAME = re.compile(r"(row|y|z)(\d*)")


class LatentRows(NamedTuple):
    """The latent variables of some data.

    Attributes:
        z: [B, *].
        row: the numbers of the data in their file, [B]; None: it is all of them in their order.
        y: what the model was given, [B] or [B, A]; None: nothing.
    """

    z: np.ndarray
    row: np.ndarray | None = None
    y: np.ndarray | None = None


class ArrayFile:
    """A .npy file that is written part by part.

    Args:
        count: of all rows.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._count, self._begun = count, False
        self._file = path.open("wb")

    def write(self, part: np.ndarray) -> None:
        """Adds rows [B, *], all of the type and shape of the first."""
        part = np.ascontiguousarray(part)
        if not self._begun:
            header = {
                "descr": np.lib.format.dtype_to_descr(part.dtype),
                "fortran_order": False,
                "shape": (self._count, *part.shape[1:]),
            }
            np.lib.format.write_array_header_1_0(self._file, header)
            self._begun = True
        self._file.write(part.data)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


class TableFile:
    """A .csv or .parquet file that is written part by part. Parts are gathered in groups of rows.

    Args:
        count: of all rows; not needed.
    """

    def __init__(self, path: Path, count: int = 0) -> None:
        self._path = path
        self._parts: list[pyarrow.Table] = []
        self._writer: Any = None

    def write(self, part: "pyarrow.Table") -> None:
        """Adds rows, with the columns and types of the first."""
        self._parts.append(part)
        if sum(table.nbytes for table in self._parts) > BUFFER:
            self._flush()

    def _flush(self) -> None:
        if not self._parts:
            return
        with needs("tables", __name__):
            import pyarrow
            import pyarrow.csv
            import pyarrow.parquet
        if self._writer is None:
            csv = self._path.suffix.lower() == ".csv"
            kind = pyarrow.csv.CSVWriter if csv else pyarrow.parquet.ParquetWriter
            self._writer = kind(str(self._path), self._parts[0].schema)
        schema = self._parts[0].schema
        self._writer.write_table(pyarrow.concat_tables(p.cast(schema) for p in self._parts))
        self._parts = []

    def close(self) -> None:
        """Ends the file."""
        try:
            self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()


@contextmanager
def writer(path: Path, count: int) -> Iterator[Callable[[Any], None]]:
    """Takes arrays for a .npy file, and arrow tables for a .csv or .parquet file, part by part; the
    file is there when all of it is.

    Args:
        count: of all rows.
    """
    with whole(path) as partial:
        kind = TableFile if is_table(path) else ArrayFile
        file = kind(partial, count)
        try:
            yield file.write
        finally:
            file.close()


@contextmanager
def latent_writer(path: Path, count: int) -> Iterator[Callable[[LatentRows], None]]:
    """The same for latent variables."""
    if is_table(path):
        with writer(path, count) as write:
            yield lambda part: write(_as_table(part))
        return
    before = path.exists()
    with ExitStack() as held:
        write = held.enter_context(writer(path, count))
        others: dict[str, Callable[[Any], None]] = {}

        def write_all(part: LatentRows) -> None:
            write(part.z)
            for name in BESIDE:
                if (values := getattr(part, name)) is not None:
                    if name not in others:
                        others[name] = held.enter_context(writer(beside(path, name), count))
                    others[name](values)

        yield write_all
        for name in BESIDE:
            if before and name not in others:
                beside(path, name).unlink(missing_ok=True)  # of what the file was


def beside(path: Path, name: str) -> Path:
    """The file beside a .npy file that holds something of the same rows."""
    return path.with_name(f"{path.stem}.{name}.npy")


def _as_table(part: LatentRows) -> "pyarrow.Table":
    with needs("tables", __name__):
        import pyarrow
    columns: dict[str, np.ndarray] = {}
    for name in (*BESIDE, "z"):
        values = getattr(part, name)
        if values is None:
            continue
        if values.ndim == 1 and name in BESIDE:
            columns[name] = values
        else:
            flat = values.reshape(len(values), -1)
            columns |= {f"{name}{at}": flat[:, at] for at in range(flat.shape[1])}
    return pyarrow.table(columns)


class LatentFile:
    """A file of latent variables, read part by part.

    Raises:
        ValueError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if is_table(path):
            self._check_names()
            self.count = sum(len(table) for table in self._tables(2**16))
        else:
            self._arrays = self._open()
            self.count = len(self._arrays["z"])
        if not self.count:
            raise ValueError(f"{path} has no rows")

    def parts(self, size: int) -> Iterator[LatentRows]:
        """All rows, at most so many at a time."""
        if is_table(self.path):
            yield from (_from_table(table) for table in self._tables(size))
            return
        for start in range(0, self.count, size):
            some = slice(start, start + size)
            yield LatentRows(**{n: np.array(a[some]) for n, a in self._arrays.items()})

    def _open(self) -> dict[str, np.ndarray]:
        found = {"z": open_arrays(self.path)["x"]}
        if found["z"].ndim < 2:
            raise ValueError(
                f"{self.path} must hold z of shape [N, ...], got {list(found['z'].shape)}"
            )
        for name in BESIDE:
            if (other := beside(self.path, name)).is_file():
                found[name] = open_arrays(other)["x"]
                if len(found[name]) != len(found["z"]):
                    raise ValueError(
                        f"{other} has {len(found[name])} rows, {self.path} {len(found['z'])}: "
                        "remove the one that is not of the other"
                    )
        return found

    def _check_names(self) -> None:
        names = self._names()
        if "z0" not in names or not all(map(NAME.fullmatch, names)):
            raise ValueError(
                f"{self.path} must have the columns z0, z1, ..., and may have row and y, it has "
                f"{', '.join(names[:20])}"
            )

    def _names(self) -> list[str]:
        if self.path.suffix.lower() == ".csv":
            with self.path.open() as file:
                return [name.strip().strip('"') for name in file.readline().split(",")]
        with needs("tables", __name__):
            import pyarrow
            import pyarrow.parquet
        try:
            return list(pyarrow.parquet.read_schema(self.path).names)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{self.path} cannot be read: {_one_line(error)}") from None

    def _tables(self, size: int) -> Iterator["pyarrow.Table"]:
        with needs("tables", __name__):
            import pyarrow
            import pyarrow.csv
            import pyarrow.parquet
        try:
            if self.path.suffix.lower() == ".csv":
                types = {n: "int64" if n in BESIDE else "float64" for n in self._names()}
                options = pyarrow.csv.ConvertOptions(column_types=types)
                batches = pyarrow.csv.open_csv(self.path, convert_options=options)
            else:
                batches = pyarrow.parquet.ParquetFile(self.path).iter_batches(size)
            for batch in batches:
                for start in range(0, batch.num_rows, size):
                    yield pyarrow.Table.from_batches([batch.slice(start, size)])
        except pyarrow.ArrowException as error:
            raise ValueError(f"{self.path} cannot be read: {_one_line(error)}") from None


def _from_table(table: "pyarrow.Table") -> LatentRows:
    found: dict[str, Any] = {}
    for name in (*BESIDE, "z"):
        numbered = [n for n in table.column_names if re.fullmatch(rf"{name}\d+", n)]
        if name in table.column_names:
            found[name] = table[name].to_numpy().copy()
        elif numbered:
            ordered = sorted(numbered, key=lambda n: int(n.removeprefix(name)))
            found[name] = np.stack([table[n].to_numpy() for n in ordered], -1)
    return LatentRows(**found)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
