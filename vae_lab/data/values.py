"""The way back from a model's numbers to the values of an array or a table in a file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..optional import needs
from .columns import COUNTS, Column, decode, positions

if TYPE_CHECKING:
    import pyarrow


def text_column(columns: Sequence[Column]) -> str | None:
    """The name of a column whose values are no numbers, so that no array has them; or None."""
    named = (c["name"] for c in columns if any(isinstance(v, str) for v in c.get("values", ())))
    return next(named, None)


def to_array(x: np.ndarray, columns: Sequence[Column]) -> np.ndarray:
    """A model's data [B, *, D] without missing values, as the values that an array had.

    Integers or booleans if all columns hold those, and otherwise float32; without columns x itself.
    """
    if not columns:
        return x
    found = np.stack([_values(c, x[..., at]) for at, c in enumerate(columns)], -1)
    return found.astype(np.float32) if found.dtype.kind == "f" else found


def _values(column: Column, numbers: np.ndarray) -> np.ndarray:
    if "values" in column:
        known = np.array(column["values"])
        return known[np.rint(numbers).astype(int).clip(0, len(known) - 1)]
    whole = column["kind"] in (*COUNTS, "bernoulli") or column.get("integer")
    return np.rint(numbers).astype(np.int64) if whole else numbers


def fill_array(
    array: np.ndarray, columns: Sequence[Column], missing: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """An array as a file has it, with its missing values filled and all others as they were.

    Args:
        array: [B], [B, *, C]; some of its columns may be none of the model's.
        columns: the model's, D of them; none for pictures.
        missing: of the model's data, [B, *, D].
        x: the model's data, filled.
    """
    filled = array.copy()
    if not columns:
        filled.reshape(x.shape)[missing] = x[missing]
        return filled
    view = filled.reshape(*x.shape[:-1], -1)
    for at, (place, column) in enumerate(zip(positions(columns), columns, strict=True)):
        where = missing[..., at]
        view[..., place][where] = _values(column, x[..., at][where])
    return filled


def fill_table(
    table: "pyarrow.Table", columns: Sequence[Column], missing: np.ndarray, x: np.ndarray
) -> "pyarrow.Table":
    """The same of a table [B, C], of which the model may know some columns only."""
    with needs("tables", __name__):
        import pyarrow
    for at, column in enumerate(columns):
        where = missing[:, at]
        if not where.any():
            continue
        place, old = table.column_names.index(column["name"]), table[column["name"]]
        values: list[Any] = old.to_pylist()
        for row, value in zip(np.flatnonzero(where), decode(column, x[where, at]), strict=True):
            values[row] = value
        table = table.set_column(place, table.schema.field(place), pyarrow.array(values, old.type))
    return table
