"""The columns of a table: what kind of values each has, and how these become numbers.

A column is a plain dict, as :class:`vae_lab.likelihoods.Columns` takes it: `name`, `kind`, and for
a kind of few values the list `values`, for whose k-th entry a model sees the number k.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Column = dict[str, Any]

CONTINUOUS = ("gaussian", "lognormal", "student_t")
COUNTS = (
    *("poisson", "negative_binomial"),
    *("zero_inflated_poisson", "zero_inflated_negative_binomial"),
)
OF_VALUES = ("bernoulli", "categorical", "ordinal")
KINDS = (*CONTINUOUS, *COUNTS, *OF_VALUES)

FEW = 10  # distinct integers that are steps of a scale and no counts
REPEATS = 10  # of each of them, if there are integers between that never are
MOST_VALUES = 1000  # of a column of few values
FREE_TEXT = 0.5  # of the rows have another text
LARGE_COUNT = 100.0  # in the mean, without zeros: as good as a real number
SKEWED = 1.0
TINY = float(np.finfo(np.float32).tiny)  # what is nearer to 0 may become 0
NARROW = 1e-5  # of its size, the deviation of a column of which float32 may lose the values
HEAVY = 3.0  # excess kurtosis: that of a Laplace density; of a normal one it is 0


class Guess(NamedTuple):
    """A column, and the reason for its kind in a few words."""

    column: Column
    reason: str


def guess(name: str, values: np.ndarray, kind: str | None = None) -> Guess:
    """The column that some values seem to be.

    Args:
        values: shape [N], of numbers, booleans, or objects: text, and None where it is missing.
        kind: somebody has said it already.

    Raises:
        ValueError: they cannot be modelled, or not as this kind.
    """
    known = present(values)
    if not len(known):
        raise ValueError(f"column {name!r} has no values: {leave_out(name)}")
    _check_finite(name, values)
    if kind is not None:
        return Guess(_of_kind(name, known, kind), "as you said")
    if known.dtype.kind in "Ob":
        return _of_text(name, known)
    if (known == known[0]).all():
        raise ValueError(f"column {name!r} has one value, {known[0]}: {leave_out(name)}")
    return _of_numbers(name, known)


def guess_of_numbers(name: str, values: np.ndarray, kind: str | None = None) -> Guess:
    """:func:`guess` for a column without a name of its own, whose numbers a model sees as they are:
    of few values only where these are 0, 1, ..., K - 1."""
    found = guess(name, values, kind)
    few = found.column.get("values")
    if few is None or few == list(range(len(few))) or few == [False, True]:
        return found
    if kind is not None:
        raise ValueError(
            f"column {name!r} of an array must hold 0, 1, ..., {len(few) - 1} to be {kind}, got "
            f"{few[0]}, {few[1]}, ...: number its values from 0, or pass a frame"
        )
    return _continuous(name, present(values), integer=True)


def is_settled(name: str, values: np.ndarray) -> bool:
    """Whether some numbers of a column settle its kind: that there is one value, that all are whole
    and that they are lognormal could each be refuted by a number that is not among them."""
    known = present(values)
    if not len(known) or (known == known[0]).all() or _are_whole(known):
        return False
    return known.min() <= 0 or _continuous(name, known).column["kind"] != "lognormal"


def present(values: np.ndarray) -> np.ndarray:
    """The values that are not missing."""
    return values[~is_missing(values)]


def is_missing(values: np.ndarray) -> np.ndarray:
    """Where there is none: NaN, or None among objects."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind == "O":
        return np.array([v is None or v != v for v in values], bool)
    return np.zeros(values.shape, bool)


def unmasked(values: np.ndarray) -> np.ndarray:
    """Numbers as a plain array, NaN where they were masked."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if not np.ma.is_masked(values):
        return values.data
    return np.ma.filled(values.astype(np.result_type(values.dtype, np.float32)), math.nan)


def encode(
    column: Column,
    values: np.ndarray,
    where: str = "the data",
    cure: str = "make it missing, or move such a row into the training data",
) -> np.ndarray:
    """Values as the numbers that a model sees, float32 of the same shape, NaN where missing.

    Args:
        where: they come from, for messages.
        cure: what to do with a value that the training data does not have.
    """
    if "values" not in column:
        return _as_float32(column, values, where)
    codes = {value: code for code, value in enumerate(column["values"])}
    found = np.full(values.shape, np.nan, np.float32)
    known = ~is_missing(values)
    distinct, places = _distinct(values[known])
    if new := [value for value in distinct if value not in codes]:
        shown = ", ".join(map(repr, column["values"][:FEW]))
        more = ", ..." if len(codes) > FEW else ""
        raise ValueError(
            f"column {column['name']!r} of {where} has {new[0]!r}, the training data only "
            f"{shown}{more}: {cure}"
        )
    found[known] = np.array([codes[value] for value in distinct], np.float32)[places]
    return found


def decode(column: Column, numbers: np.ndarray) -> list[Any]:
    """The way back of :func:`encode`: values as the file has them, None where missing."""
    names = column.get("values")
    whole = names is not None or column["kind"] in (*COUNTS, *OF_VALUES)
    found: list[Any] = []
    for number in numbers.tolist():
        if number != number:
            found.append(None)
        elif names is not None:
            found.append(names[min(max(round(number), 0), len(names) - 1)])
        else:
            found.append(round(number) if whole or column.get("integer") else number)
    return found


def of_text(columns: Iterable[Column]) -> list[str]:
    """The names of the columns whose values are text."""
    values = {column["name"]: column.get("values") for column in columns}
    return [name for name, few in values.items() if few and all(isinstance(v, str) for v in few)]


def leave_out(name: str) -> str:
    """The end of a message about a column that cannot stay."""
    return f"leave it out, columns={{{name!r}: None}}, or typed data.columns={{{name}: null}}"


def edited(names: Sequence[str], edits: Mapping[Any, str | None]) -> dict[str, str | None]:
    """The kinds that somebody has given, by the columns' names; checked.

    Args:
        names: of all columns.
        edits: a kind, or None to leave the column out.
    """
    kinds = {str(name): kind for name, kind in edits.items()}
    for name, kind in kinds.items():
        if name not in names:
            shown = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
            raise ValueError(f"there is no column {name!r}; known: {shown}")
        if kind is not None and kind not in KINDS:
            raise ValueError(f"column {name!r} must be one of {', '.join(KINDS)}, got {kind!r}")
    return kinds


def _of_kind(name: str, known: np.ndarray, kind: str) -> Column:
    if kind in OF_VALUES:
        return _with_values(name, kind, _plain(known))
    if known.dtype.kind in "Ob":
        raise ValueError(f"column {name!r} holds {known[0]!r}, no numbers, so it is not {kind}")
    low = known.min()
    if kind == "lognormal" and low <= 0:
        raise ValueError(f"column {name!r} holds {low}, so it is not lognormal: log x needs x > 0")
    if kind == "lognormal":
        _check_not_tiny(name, low)
    if kind in COUNTS and (low < 0 or not _are_whole(known)):
        raise ValueError(f"column {name!r} must hold the integers 0, 1, 2, ... to be {kind}")
    check_digits(name, known)
    return {"name": name, "kind": kind}


def _of_text(name: str, known: np.ndarray) -> Guess:
    values = _plain(known)
    if len(values) == 1:
        raise ValueError(f"column {name!r} has one value, {values[0]!r}: {leave_out(name)}")
    if len(values) > max(FREE_TEXT * len(known), 2) or len(values) > MOST_VALUES:
        if sum(map(_has_comma, values)) > len(values) / 2:
            raise ValueError(
                f"column {name!r} holds numbers with a decimal comma, such as {values[0]!r}: write "
                "them with a point, as pandas.read_csv(FILE, decimal=',') reads them"
            )
        words = [value for value in values if not _is_number(value)]
        if not words:
            raise ValueError(
                f"column {name!r} holds numbers written as text, such as {values[0]!r}: convert "
                f"them, as frame[{name!r}].astype(float) does"
            )
        if len(words) < len(values) / 2:
            raise ValueError(
                f"column {name!r} holds numbers, and {words[0]!r}: mend it, or leave such a field "
                "empty, which is a missing value"
            )
        raise ValueError(
            f"column {name!r} is text with {len(values)} different values in {len(known)} rows, "
            f"such as {values[0]!r}: {leave_out(name)}"
        )
    kind = "bernoulli" if len(values) == 2 else "categorical"
    of = "true or false" if {*values} == {True, False} else f"text, {len(values)} values"
    return Guess(_with_values(name, kind, values), of)


def _has_comma(value: Any) -> bool:
    """Whether this would be a number if its one comma was a point."""
    return isinstance(value, str) and value.count(",") == 1 and _is_number(value.replace(",", "."))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _of_numbers(name: str, known: np.ndarray) -> Guess:
    if not _are_whole(known):
        return _continuous(name, known)
    values = _plain(known, FEW + 1)
    if len(values) == 2:
        return Guess(
            _with_values(name, "bernoulli", values), f"two values, {values[0]}, {values[1]}"
        )
    mean, variance, low = known.mean(dtype=float), known.var(dtype=float), known.min()
    most = FEW if low else FEW // 2  # what begins at 0 may be counts
    without_gap = values[-1] - values[0] < len(values)
    if len(values) <= most and (without_gap or len(known) > REPEATS * len(values)):
        return Guess(_with_values(name, "ordinal", values), f"{len(values)} different integers")
    if not 0 <= low < FEW or variance < mean / 2 or (low > 0 and mean > LARGE_COUNT):
        return _continuous(name, known, integer=True)
    as_poisson = variance <= mean * (1 + 3 * math.sqrt(2 / len(known)))  # with its own error
    kind = "poisson" if as_poisson else "negative_binomial"
    reason = f"integers from {low:g}, mean {mean:.3g}, variance {variance:.3g}"
    return Guess({"name": name, "kind": kind}, reason)


def _continuous(name: str, known: np.ndarray, integer: bool = False) -> Guess:
    check_digits(name, known)
    values = known.astype(float)
    low, skew, kurtosis = values.min(), *_shape(values)
    about = f"{low:.3g} to {values.max():.3g}"
    kind, reason = "gaussian", about
    if low >= TINY and skew > SKEWED and abs(_shape(np.log(values))[0]) < skew:
        kind, reason = "lognormal", f"{about}, skewness {skew:.1f}"
    elif kurtosis > HEAVY:
        kind, reason = "student_t", f"{about}, excess kurtosis {kurtosis:.1f}"
    return Guess({"name": name, "kind": kind} | ({"integer": True} if integer else {}), reason)


def _shape(values: np.ndarray) -> tuple[float, float]:
    """Skewness and excess kurtosis."""
    centred = values - values.mean()
    scale = centred.std() or 1.0
    standard = centred / scale
    squares = standard * standard  # ten times as fast as powers
    return float((squares * standard).mean()), float((squares * squares).mean() - 3)


def _with_values(name: str, kind: str, values: list[Any]) -> Column:
    if kind == "bernoulli" and len(values) != 2:
        raise ValueError(
            f"column {name!r} has {len(values)} different values, a bernoulli one has 2"
        )
    if len(values) > MOST_VALUES:
        raise ValueError(
            f"column {name!r} has {len(values)} different values, at most {MOST_VALUES} can be "
            f"{kind}: {leave_out(name)}"
        )
    return {"name": name, "kind": kind, "values": values}


def _plain(known: np.ndarray, most: int | None = None) -> list[Any]:
    """The different values in their order, as Python's own; whole numbers as integers.

    Args:
        most: more of them need not all be found.
    """
    if most is not None and len(np.unique(known[:: -(-len(known) // 1000)])) >= most:
        known = known[:: -(-len(known) // 1000)]
    distinct, _ = _distinct(known)
    return distinct


def _distinct(known: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The different values, and which of them each one is."""
    if known.dtype.kind != "O":
        found, places = np.unique(known, return_inverse=True)
        plain: Iterable[Any] = found.tolist()
        if found.dtype.kind == "f" and _are_whole(found):
            plain = map(int, plain)
        return list(plain), places.reshape(known.shape)
    kinds = {type(value) for value in known}
    ordered = sorted(set(known), key=None if len(kinds) == 1 else str)
    number = {value: place for place, value in enumerate(ordered)}
    return ordered, np.array([number[value] for value in known], int)


def _are_whole(values: np.ndarray) -> bool:
    return values.dtype.kind in "iub" or bool((values == np.rint(values)).all())


def _check_finite(name: str, values: np.ndarray, where: str = "") -> None:
    if values.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        infinite = np.isinf(values.astype(np.float32))
    if infinite.any():
        at = np.argwhere(infinite)[0].tolist()
        raise ValueError(
            f"column {name!r}{where} is {values[tuple(at)]} in row {at[0]}: make it missing, or "
            "remove the row"
        )


def check_digits(name: str, known: np.ndarray) -> None:
    """Refuses numbers so far from 0, for their spread, that float32 makes the same of many."""
    low, high = float(known.min()), float(known.max())
    if known.std(dtype=float) > NARROW * max(abs(low), abs(high)):
        return
    before, after = (len(np.unique(some)) for some in (known, known.astype(np.float32)))
    if after <= before / 2:
        raise ValueError(
            f"column {name!r} is {low:.13g} to {high:.13g}, where float32 cannot tell its values "
            f"apart: {before} become {after}; subtract its least value or its mean first, as "
            "values - values.min()"
        )


def _check_not_tiny(name: str, low: float, where: str = "") -> None:
    """Refuses what has a logarithm, but none in float32."""
    if 0 < low < TINY:
        raise ValueError(
            f"column {name!r}{where} holds {low:g}, which float32 takes for 0: a lognormal column "
            f"needs {TINY:.2g} or more; multiply it, or store its logarithm"
        )


def _as_float32(column: Column, values: np.ndarray, where: str) -> np.ndarray:
    name = column["name"]
    if values.dtype.kind == "O":
        found = present(values)
        if not len(found):  # nobody can tell what an empty column would hold
            return np.full(values.shape, np.nan, np.float32)
        raise ValueError(
            f"column {name!r} of {where} holds {found[0]!r}, the training data numbers"
        )
    _check_finite(name, values, f" of {where}")
    if column["kind"] == "lognormal" and (known := present(values)).size:
        _check_not_tiny(name, known.min(), f" of {where}")
    return values.astype(np.float32)


def positions(columns: Sequence[Column]) -> list[int]:
    """Where the columns are in an array without names: "0", "1", ... say it, and else they are in
    their order."""
    names = [column["name"] for column in columns]
    numbered = all(name.isdecimal() for name in names)
    return [int(name) for name in names] if numbered else [*range(len(names))]
