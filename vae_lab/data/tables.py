"""Tables, of columns with names, and arrays, of which every column is a number: as tensors."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..optional import needs
from .columns import (
    Column,
    check_digits,
    decode,
    edited,
    encode,
    guess,
    guess_of_numbers,
    is_settled,
    leave_out,
    positions,
    present,
    unmasked,
)

if TYPE_CHECKING:
    import pyarrow

Named = dict[str, np.ndarray]
Edits = Mapping[Any, str | None]
Columns = Edits | Sequence[Column] | None

LOOKED_AT = 100_000  # rows, for a guess
INDEX = re.compile(r"__index_level_\d+__|")  # what pandas calls it in a .parquet, and in a .csv
EXACT = 2**53  # float64 has all integers up to it
MOST_LINES = 60  # that anybody reads


@dataclass(frozen=True)
class Table:
    """Data as a model takes it, and what its last axis means.

    Attributes:
        x: shape [N, *X], float32, NaN where a value is missing.
        columns: of the last axis; see :class:`vae_lab.likelihoods.Columns`. None for pictures.
        labels: shape [N], int64, -1 where missing: numbers of `classes`; or attributes, [N, A]
            float32. None: there are none.
        classes: the values of the labels, or the names of the attributes.
        reasons: why each column is of its kind, where it was guessed.
    """

    x: Tensor
    columns: list[Column]
    labels: Tensor | None = None
    classes: list[Any] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def missing(self) -> bool:
        """Whether a value is missing."""
        return bool(self.x.isnan().any())

    @property
    def guess(self) -> str:
        """The columns, a line each: name, kind and the reason for it."""
        return as_text(self.columns, self.reasons)


def as_text(columns: Sequence[Column], reasons: Sequence[str]) -> str:
    """Columns, a line each with the reason for their kind; of very many only how many are what."""
    kinds = [column["kind"] for column in columns]
    if len(columns) > MOST_LINES:
        return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    names = [column["name"] for column in columns]
    wide, broad = (max(map(len, texts), default=0) for texts in (names, kinds))
    rows = zip_longest(names, kinds, reasons, fillvalue="")
    return "\n".join(f"{n:<{wide}}  {kind:<{broad}}  {why}".rstrip() for n, kind, why in rows)


def as_table(x: Any, columns: Columns = None, labels: str | None = None) -> Table:
    """Data of any kind as tensors, with a guess of what its columns are.

    .. code-block:: python

        table = as_table(frame, {"price": "lognormal", "id": None}, labels="species")
        print(table.guess)

    Args:
        x: a numpy array or tensor [N, D], [N, T, D] or [N, C, H, W]; a pandas or polars frame, an
            arrow table, or arrays by the columns' names.
        columns: of a table read before, to be read the same way; or, by their names, kinds that
            replace what is guessed, and None for a column to leave out. Those of an array are
            called "0", "1", and so on, and its numbers are taken as they are.
        labels: a column that is no part of x but its label.
    """
    named = as_named(x, columns, labels)
    if named is None:
        array = as_array(x)
        if labels is not None:
            raise ValueError(f"an array has no column {labels!r}: labels need columns with names")
        return of_array(array, columns)
    return of_named(named, columns, labels)


def of_named(
    named: Named,
    columns: Columns = None,
    labels: str | Sequence[str] | None = None,
    classes: Sequence[Any] = (),
    where: str = "the data",
) -> Table:
    """:func:`as_table` of arrays [N] by their names.

    Args:
        labels: the column of them, or several that are attributes.
        classes: the values of the labels, or the names of the attributes, if they are known; by
            default those that there are.
        where: they come from, for messages.
    """
    names = _as_list(labels)
    _check_names(named, names, where)
    _check_lengths(named, where)
    codes = None
    if isinstance(labels, str):
        codes, classes = _labels(labels, named[labels], classes, where)
    elif names:
        codes, classes = _attributes({name: named[name] for name in names}, classes, where)
    rest = {name: values for name, values in named.items() if name not in names}
    found, edits = schema_and_edits(columns)
    reasons: list[str] = []
    if not found:
        kinds = edited([*rest, *left_out(columns)], edits)
        kept = [name for name in rest if kinds.get(name, "") is not None]
        guesses = [guess(name, rest[name], kinds.get(name)) for name in kept]
        found, reasons = [g.column for g in guesses], [g.reason for g in guesses]
    _check_names(rest, [column["name"] for column in found], where)
    if not found:
        raise ValueError(f"{where} has no columns left")
    numbers = [encode(column, rest[column["name"]], where) for column in found]
    return Table(torch.from_numpy(np.stack(numbers, -1)), found, codes, list(classes), reasons)


def of_array(array: np.ndarray, columns: Columns = None, where: str = "the data") -> Table:
    """:func:`as_table` of an array without names."""
    if array.ndim == 4:
        return Table(torch.from_numpy(encode_array(array, [], where)), [])
    found, reasons = columns_of_array(array, columns)
    return Table(torch.from_numpy(encode_array(array, found, where)), found, reasons=reasons)


def columns_of_array(array: np.ndarray, columns: Columns = None) -> tuple[list[Column], list[str]]:
    """The columns of the last axis of an array, and the reasons for their kinds.

    Of many rows some are looked at, evenly over all of them, and all of a column of which one more
    could be of another kind.
    """
    schema, edits = schema_and_edits(columns)
    if schema:
        return schema, []
    kinds = edited([str(at) for at in range(array.shape[-1])], edits)
    some = np.asarray(array[:: -(-len(array) // LOOKED_AT)]).reshape(-1, array.shape[-1])
    guesses = []
    for at in range(array.shape[-1]):
        kind = kinds.get(name := str(at), "")
        if kind is not None:
            values = some[:, at]
            if len(some) < array[..., 0].size and (kind or not is_settled(name, values)):
                values = np.asarray(array[..., at]).ravel()
            guesses.append(guess_of_numbers(name, values, kind or None))
    if not guesses:
        raise ValueError("the data has no columns left")
    return [g.column for g in guesses], [g.reason for g in guesses]


def encode_array(array: np.ndarray, columns: Sequence[Column], where: str) -> np.ndarray:
    """Rows [B, *, D] as the numbers that a model sees, float32; of pictures, without columns, the
    numbers themselves."""
    if not columns:
        return _finite(np.array(array, np.float32), where)
    kept = positions(columns)
    if max(kept) >= array.shape[-1]:
        raise ValueError(
            f"{where} has {array.shape[-1]} columns, there must be {max(kept) + 1} or more"
        )
    if kept != list(range(array.shape[-1])):
        array = array[..., kept]
    return _finite(np.array(array, np.float32), where)


def _finite(numbers: np.ndarray, where: str) -> np.ndarray:
    if np.isinf(numbers).any():
        row, *place = np.argwhere(np.isinf(numbers))[0].tolist()
        raise ValueError(f"{where} is infinite in row {row}, at {place}: make it NaN, or remove it")
    return numbers


def to_columns(x: Tensor | np.ndarray, columns: Sequence[Column]) -> dict[str, list[Any]]:
    """The way back from a model's data [N, D] to the values of a table, by the columns' names."""
    numbers = x.detach().cpu().double().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if numbers.ndim != 2 or numbers.shape[1] != len(columns):
        raise ValueError(f"x must have the shape [N, {len(columns)}], got {list(numbers.shape)}")
    return {c["name"]: decode(c, numbers[:, at]) for at, c in enumerate(columns)}


def to_frame(x: Tensor | np.ndarray, columns: Sequence[Column]) -> "pyarrow.Table":
    """The same as an arrow table, of which pandas and polars make their frames: `.to_pandas()`,
    `polars.from_arrow(...)`."""
    with needs("tables", __name__):
        import pyarrow
    return pyarrow.table(to_columns(x, columns))


def likelihood_of(columns: Sequence[Column], missing: bool) -> dict[str, Any]:
    """The likelihood that suits such data, as a config: `_target_` and its arguments.

    Args:
        columns: none for pictures of floats.
        missing: are there missing values.
    """
    if columns:
        plain = [dict(column) for column in columns]
        return {"_target_": "vae_lab.likelihoods.Columns", "columns": plain, "missing": missing}
    settings = {"sigma": 1.0, "learned": True, "standardize": True, "missing": missing}
    return {"_target_": "vae_lab.likelihoods.Gaussian", **settings}


def as_array(x: Any) -> np.ndarray:
    """A numpy array of numbers or booleans, with two to four axes, NaN where it is masked."""
    if isinstance(x, Tensor):
        x = _from_tensor(x)
    try:
        array = x if isinstance(x, np.ndarray) else np.asarray(x)
    except ValueError:  # numpy's own speaks of a sequence
        raise ValueError("the rows of an array must be of one length, and these are not") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"an array must hold numbers, got {array.dtype}")
    array = unmasked(array)
    if array.ndim == 1:
        array = array[:, None]
    if not 2 <= array.ndim <= 4 or not array.size:
        raise ValueError(
            f"an array must have the shape [N, D], [N, T, D] or [N, C, H, W], got {[*array.shape]}"
        )
    return array


def is_named(x: Any) -> bool:
    """Whether it is a table whose columns have names."""
    frame = hasattr(x, "__arrow_c_stream__") or hasattr(type(x), "to_frame")
    return frame or isinstance(x, Mapping)


def as_named(
    x: Any,
    columns: Columns = None,
    labels: str | Sequence[str] | None = None,
    where: str = "the data",
) -> Named | None:
    """The columns of a table by their names, without the index of a pandas frame; None if it is
    none.

    Args:
        columns: as in :func:`as_table`; columns that are left out are not looked at, nor are those
            that a table read before has not.
        labels: the column, or several, that may be no part of these.
        where: it comes from, for messages.
    """
    if isinstance(x, Mapping):
        values = {str(name): values for name, values in x.items()}
        kept = _looked_at([*values], columns, labels, where)
        return {name: _from_list(name, values[name]) for name in kept}
    if not is_named(x):
        return None
    with needs("tables", __name__):
        import pyarrow
    if hasattr(type(x), "to_frame"):  # a column alone
        x = x.to_frame()
    if hasattr(type(x), "reset_index"):  # a frame of pandas, whose index is no data
        x = x.reset_index(drop=True)
    try:
        table = pyarrow.table(x)
    except pyarrow.ArrowException as error:  # of a column of text and numbers
        said = ", ".join(str(part) for part in error.args)
        raise ValueError(f"a frame's column must hold one kind of values: {said}") from None
    return from_arrow(table, columns, labels, where)


def _looked_at(
    names: Sequence[str], columns: Columns, labels: str | Sequence[str] | None, where: str
) -> list[str]:
    schema, _ = schema_and_edits(columns)
    wanted = [*_as_list(labels), *(column["name"] for column in schema)]
    without = left_out(columns)
    _check_names(names, [*without, *wanted], where)
    return [name for name in names if (name in wanted if schema else name not in without)]


def _from_tensor(x: Tensor) -> np.ndarray:
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def _from_list(name: str, values: Any) -> np.ndarray:
    """An array [N] of numbers; or of objects, of which numpy would make text."""
    if isinstance(values, Tensor):
        values = _from_tensor(values)
    if isinstance(values, np.ma.MaskedArray):
        values = values.tolist()  # None where it is masked
    if isinstance(values, np.ndarray) and values.dtype != object:
        if values.dtype.kind not in "fiubUS":
            raise ValueError(_neither(name, values.dtype))
        return values.astype(object) if values.dtype.kind in "US" else values
    objects = np.empty(len(values), object)
    objects[:] = [_as_python(value) for value in values]
    known = [value for value in objects if value is not None]
    numbers = all(isinstance(value, int | float) for value in known)
    if not numbers or any(isinstance(value, bool) for value in known):
        return objects
    return np.array([math.nan if value is None else value for value in objects])


def _as_python(value: Any) -> Any:
    """A value of numpy, arrow, pandas or decimal as Python's own."""
    if type(value).__name__ == "NAType":  # pandas.NA, which is not even equal to itself
        return None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, np.generic):
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def from_arrow(
    table: "pyarrow.Table",
    columns: Columns = None,
    labels: str | Sequence[str] | None = None,
    where: str = "the data",
) -> Named:
    """:func:`as_named` of an arrow table."""
    names = table.column_names
    kept = _looked_at(names, columns, labels, where)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"there are several columns of the name {twice[0]!r}: rename them")
    return {name: _from_arrow(name, table[name]) for name in kept if not INDEX.fullmatch(name)}


def _from_arrow(name: str, column: Any) -> np.ndarray:
    import pyarrow.types as kinds

    of_few = kinds.is_dictionary(column.type)
    kind = column.type.value_type if of_few else column.type
    text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
    if text or kinds.is_boolean(kind) or kinds.is_null(kind):
        return np.array(column.to_pylist(), object)
    if of_few:
        column = column.cast(kind)
    if kinds.is_integer(kind) or kinds.is_floating(kind):
        numbers = column.to_numpy()
        missing = kinds.is_integer(kind) and column.null_count
        if missing and np.nanmax(np.abs(numbers), initial=0) > EXACT:
            check_digits(name, column.drop_null().to_numpy())
        return numbers
    if kinds.is_decimal(kind):
        return column.cast("float64").to_numpy()
    raise ValueError(_neither(name, kind))


def _neither(name: str, kind: Any) -> str:
    return f"column {name!r} holds {kind}, neither numbers nor text: {leave_out(name)}"


def schema_and_edits(columns: Columns) -> tuple[list[Column], Edits]:
    """All columns, if it is these that were given, and edits by name, if it is those."""
    if columns is None or isinstance(columns, Mapping):
        return [], columns or {}
    return [dict(column) for column in columns], {}


def _as_list(labels: str | Sequence[str] | None) -> list[str]:
    return [labels] if isinstance(labels, str) else [*(labels or ())]


def left_out(columns: Columns) -> list[str]:
    """The names of the columns that somebody leaves out."""
    return [str(name) for name, kind in schema_and_edits(columns)[1].items() if kind is None]


def _check_names(named: Iterable[Any], wanted: Sequence[str], where: str = "the data") -> None:
    names = list(map(str, named))
    if lacking := [name for name in wanted if name not in names]:
        shown = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
        raise ValueError(f"{where} has no column {lacking[0]!r}; its columns: {shown}")


def _check_lengths(named: Named, where: str) -> None:
    lengths = {len(values): name for name, values in named.items()}
    if len(lengths) > 1:
        (one, name), (other, second), *_ = lengths.items()
        raise ValueError(
            f"{where} has {one} values in column {name!r} and {other} in {second!r}: a table has "
            "one in each row"
        )


def _labels(
    name: str, values: np.ndarray, classes: Sequence[Any], where: str
) -> tuple[Tensor, Sequence[Any]]:
    known = present(values)
    if known.dtype.kind == "f" and (known != np.rint(known)).any():
        raise ValueError(
            f"column {name!r} of {where} holds {known[0]:g}, and labels are classes: type "
            f"[{name}] for an attribute, or leave it with the other columns"
        )
    classes = classes or guess(name, values, "categorical").column["values"]
    cure = "leave such a row out, or move it into the training data"
    numbers = encode({"name": name, "values": classes}, values, where, cure)
    return torch.from_numpy(np.nan_to_num(numbers, nan=-1).astype(np.int64)), classes


def _attributes(named: Named, names: Sequence[str], where: str) -> tuple[Tensor, Sequence[str]]:
    """Attributes [N, A], and their names: a column of numbers is one, and a column of text is one
    of 0 and 1 for each of its values, NAME=VALUE."""
    columns: dict[str, np.ndarray] = {}
    for name, values in named.items():
        if len(present(values)) < len(values):
            raise ValueError(
                f"column {name!r} of {where} has missing values, and an attribute is known of all "
                "data: fill them in, or leave it with the other columns"
            )
        if values.dtype.kind == "O":
            columns |= {
                f"{name}={value}": values == value for value in sorted(set(values), key=str)
            }
        else:
            columns[name] = values
    if unknown := [name for name in columns if names and name not in names]:
        raise ValueError(f"{where} has the attribute {unknown[0]}, which the training data has not")
    absent = np.zeros(len(next(iter(named.values()))))
    kept = [columns.get(name, absent) for name in names or columns]
    return torch.from_numpy(np.stack(kept, -1).astype(np.float32)), list(names or columns)
