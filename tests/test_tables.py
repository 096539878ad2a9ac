import math
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
import torch

from vae_lab.data.array_files import open_arrays, read_table
from vae_lab.data.columns import guess
from vae_lab.data.tables import as_table, from_arrow, of_named, to_columns, to_frame

pa = pytest.importorskip("pyarrow")

ROWS = 400
rng = np.random.default_rng(0)
KINDS = {  # values that should be taken for each kind
    "gaussian": rng.normal(size=ROWS),
    "lognormal": np.exp(rng.normal(size=ROWS)),
    "student_t": rng.standard_t(2, ROWS),
    "poisson": rng.poisson(6, ROWS),
    "negative_binomial": rng.negative_binomial(2, 0.05, ROWS),
    "ordinal": rng.integers(1, 6, ROWS),
    "bernoulli": rng.integers(0, 2, ROWS),
    "categorical": rng.choice(["red", "green, or blue", "None of both"], ROWS).astype(object),
}
NAMED = {
    "size": [1.5, None, 3.5, 2.5, 2.0],
    "colour": ["red", "green, blue", None, "red", "red"],
    "ok": [True, False, None, True, False],
    "count": [30, 0, 12, 41, 77],
    "step": [1, 3, 2, None, 1],
}


def table_of(text, tmp_path, **settings):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return of_named(from_arrow(read_table(path)), where=str(path), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_is_taken_for_its_kind(kind):
    assert guess("a", KINDS[kind]).column["kind"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_and_for_the_same_with_values_missing(kind):
    values = KINDS[kind].astype(object if kind == "categorical" else float)
    values[::7] = None
    found = guess("a", values)
    assert found.column == guess("a", KINDS[kind]).column
    x = as_table({"a": values, "b": KINDS["gaussian"]}).x
    assert x[:, 0].isnan().tolist() == [row % 7 == 0 for row in range(ROWS)]


def test_large_integers_are_no_counts():
    years = rng.integers(1950, 2020, ROWS)
    assert guess("year", years).column == {"name": "year", "kind": "gaussian", "integer": True}


def test_the_way_there_and_back_keeps_values_and_types():
    table = as_table(NAMED)
    assert table.missing
    assert to_columns(table.x, table.columns) == NAMED
    types = to_frame(table.x, table.columns).schema
    assert list(map(str, types.types)) == ["double", "string", "bool", "int64", "int64"]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_frame_is_a_table(library):
    frame = pa.table(NAMED)
    if library != "pyarrow":
        made = pytest.importorskip(library)
        frame = made.from_arrow(frame) if library == "polars" else frame.to_pandas()
    table, expected = as_table(frame), as_table(NAMED)
    torch.testing.assert_close(table.x, expected.x, equal_nan=True, rtol=0, atol=0)
    assert table.columns == expected.columns


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_is_a_table(tmp_path, suffix):
    import pyarrow.csv
    import pyarrow.parquet

    path = tmp_path / f"table.{suffix}"
    write = pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table
    write(pa.table(NAMED), path)
    table, expected = as_table(read_table(path)), as_table(NAMED)
    torch.testing.assert_close(table.x, expected.x, equal_nan=True, rtol=0, atol=0)
    assert table.columns == expected.columns


INDEXES = {
    "of a part": lambda frame: frame.sample(frac=0.8, random_state=0),
    "numbers": lambda frame: frame.set_axis([3, 1, 4, 15, 9]),
    "text": lambda frame: frame.set_axis([*"abcde"]),
    "mixed": lambda frame: frame.set_axis(["a", 1, 2.5, None, "b"]),
    "dates": lambda frame: frame.set_axis([date(2020, 1, day) for day in range(1, 6)]),
    "named": lambda frame: frame.set_axis([3, 1, 4, 15, 9]).rename_axis("patient"),
    "of two levels": lambda frame: frame.set_axis([[*"aabbc"], [1, 2, 1, 2, 1]]),
}


@pytest.mark.parametrize("index", INDEXES)
def test_the_index_of_a_frame_is_no_data(index):
    pytest.importorskip("pandas")
    frame = INDEXES[index](pa.table(NAMED).to_pandas())
    table, expected = as_table(frame), as_table(frame.reset_index(drop=True))
    assert [column["name"] for column in table.columns] == [*NAMED]
    assert torch.equal(table.x.nan_to_num(-1), expected.x.nan_to_num(-1))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_index_that_pandas_writes_is_no_data(tmp_path, suffix):
    pytest.importorskip("pandas")
    path = tmp_path / f"table.{suffix}"
    frame = INDEXES["numbers"](pa.table(NAMED).to_pandas())
    getattr(frame, f"to_{suffix}")(path)
    named = from_arrow(read_table(path))
    assert [*named] == [*NAMED] and read_table(path).num_columns == len(NAMED) + 1


@pytest.mark.parametrize(("library", "given"), [("pandas", "data"), ("polars", "values")])
def test_a_column_alone_is_a_table(library, given):
    made = pytest.importorskip(library)
    table = as_table(made.Series(name="size", **{given: KINDS["gaussian"]}))
    assert table.columns == [{"name": "size", "kind": "gaussian"}]


COLUMNS = {  # other ways to write a column of NAMED
    "a masked array": ("size", np.ma.masked_equal([1.5, 9, 3.5, 2.5, 2.0], 9)),
    "masked integers": ("step", np.ma.masked_equal([1, 3, 2, 9, 1], 9)),
    "masked booleans": ("ok", np.ma.array(np.array(NAMED["ok"], bool), mask=[0, 0, 1, 0, 0])),
    "masked text": ("colour", np.ma.masked_equal(["red", "green, blue", "?", "red", "red"], "?")),
    "numbers of numpy": ("size", [None if v is None else np.float32(v) for v in NAMED["size"]]),
    "integers of numpy": ("count", [*np.array(NAMED["count"])]),
    "booleans of numpy": ("ok", [None if v is None else np.bool_(v) for v in NAMED["ok"]]),
    "decimals": ("size", [None if v is None else Decimal(v) for v in NAMED["size"]]),
    "arrow's": ("colour", pa.array(NAMED["colour"])),
    "bfloat16": ("count", torch.tensor(NAMED["count"]).bfloat16()),
    "with a gradient": ("count", torch.tensor(NAMED["count"]).double().requires_grad_()),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_may_be_written_in_many_ways(case):
    name, values = COLUMNS[case]
    table, expected = as_table(NAMED | {name: values}), as_table(NAMED)
    torch.testing.assert_close(table.x, expected.x, equal_nan=True, rtol=0, atol=0)
    assert repr(table.columns) == repr(expected.columns)


def test_what_pandas_and_polars_call_missing_or_categories_is_known():
    pandas, polars = map(pytest.importorskip, ("pandas", "polars"))
    expected = as_table(NAMED)
    colours = polars.Series(NAMED["colour"], dtype=polars.Categorical)
    frame = polars.DataFrame(NAMED).with_columns(colour=colours)
    steps = pandas.Series(NAMED["step"], dtype="Int64")
    for table in map(as_table, (frame, NAMED | {"step": steps})):
        torch.testing.assert_close(table.x, expected.x, equal_nan=True, rtol=0, atol=0)
        assert table.columns == expected.columns


@pytest.mark.parametrize("shape", [(300, 2), (300, 4, 2), (300, 1, 4, 4)])
@pytest.mark.parametrize("kind", [float, np.float32, int, np.uint8])
def test_what_is_masked_in_an_array_is_missing(shape, kind):
    array = rng.integers(1, 200, shape).astype(kind)
    masked = np.ma.masked_less(array, 50)
    table = as_table(masked)
    assert torch.equal(table.x.isnan(), torch.from_numpy(array < 50)) and table.missing
    np.testing.assert_array_equal(table.x[~table.x.isnan()], array[array >= 50])
    assert torch.equal(as_table(np.ma.array(array)).x, as_table(array).x)  # nothing is masked


def test_a_guess_is_edited_by_name():
    table = as_table(NAMED, {"size": "lognormal", "ok": None}, labels="colour")
    assert [c["name"] for c in table.columns] == ["size", "count", "step"]
    assert table.columns[0] == {"name": "size", "kind": "lognormal"}
    assert table.labels.tolist() == [1, 0, -1, 1, 1] and table.classes == ["green, blue", "red"]
    assert table.guess.splitlines()[0].split() == ["size", "lognormal", "as", "you", "said"]


def raw(**changed):
    """The same table as arrays, with other values."""
    values = NAMED | changed
    objects = {"ok", "colour"}
    return {n: np.array(v, object if n in objects else float) for n, v in values.items()}


def test_the_columns_of_one_table_read_another():
    first = as_table(NAMED, labels="colour")
    one = raw(size=[9.0], colour=["red"], ok=[False], count=[5], step=[3])
    again = of_named(one, first.columns, "colour", first.classes)
    assert again.x.tolist() == [[9.0, 0.0, 5.0, 2.0]] and again.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("array", "kinds"),
    [
        (rng.normal(size=(300, 2)), ["gaussian", "gaussian"]),
        (rng.integers(0, 3, (300, 4, 2)), ["ordinal", "ordinal"]),
        (rng.random((300, 1)) > 0.5, ["bernoulli"]),
        (rng.random(300), ["gaussian"]),
        (rng.normal(size=(10, 1, 4, 4)), []),
    ],
)
def test_an_array_is_a_table_without_names(array, kinds):
    table = as_table(array)
    assert [column["kind"] for column in table.columns] == kinds
    assert [column["name"] for column in table.columns] == [*map(str, range(len(kinds)))]
    assert table.x.dtype == torch.float32 and len(table.x) == len(array)
    np.testing.assert_allclose(table.x.numpy().ravel(), array.ravel(), rtol=1e-6)
    tensor = as_table(torch.from_numpy(array))
    assert torch.equal(tensor.x, table.x) and tensor.columns == table.columns


def test_numbers_of_an_array_stay_as_they_are():
    """A model of it is given such an array, and not what a table would make of it."""
    array = np.array([[3, 1.0, 0], [5, 2.5, 1], [4, 0.5, 2], [3, 0.1, 1]])
    table = as_table(array)
    assert [column["kind"] for column in table.columns] == ["gaussian", "gaussian", "ordinal"]
    np.testing.assert_array_equal(table.x, array.astype(np.float32))
    with pytest.raises(ValueError, match="column '0' of an array must hold 0, 1, ..., 2 to be"):
        as_table(array, {"0": "ordinal"})


def test_rare_values_of_a_long_array_are_found():
    array = np.zeros((250_001, 1), int)
    array[1::2], array[1001] = 1, 2
    assert as_table(array).columns[0]["values"] == [0, 1, 2]


LONG = np.arange(300_000)  # of which every third is looked at
RARE = {  # columns that are something else in the rows between
    "a flag": np.where(LONG % 3 == 1, 1.0, 0.0),
    "a flag of two parts": np.where(LONG % 3 == 1, 0.5, 0.25),
    "all that is not missing": np.where(LONG % 3 == 1, rng.normal(size=len(LONG)), math.nan),
    "a fraction among counts": rng.poisson(20, len(LONG)) + 0.5 * (LONG == 1),
    "one below zero": np.exp(rng.normal(size=len(LONG))) * np.where(LONG == 1, -1, 1),
    "one category": np.where(LONG == 1, 2, LONG % 2),
}


@pytest.mark.parametrize("case", RARE)
def test_a_long_array_is_what_a_frame_of_its_numbers_is(case):
    as_frame, as_array = as_table({"0": RARE[case]}), as_table(RARE[case])
    assert as_array.columns[0]["kind"] == as_frame.columns[0]["kind"]
    torch.testing.assert_close(as_array.x, as_frame.x, equal_nan=True, rtol=0, atol=0)


def test_a_kind_that_is_said_is_that_of_all_rows():
    with pytest.raises(ValueError, match="column '0' holds -.*, so it is not lognormal"):
        as_table(RARE["one below zero"], {"0": "lognormal"})


FAR = {  # columns that float32 cannot hold, or can
    "an hour": (1.7e9 + 3600 * np.sort(rng.random(2000)), "is 17000.* to .*: 2000 become [23]."),
    "integers": (2**40 + np.arange(80), "is 1099511627776 to 1099511627855, .*: 80 become 1;"),
    "unsigned": (2**60 + np.arange(80, dtype=np.uint64), "80 become 1;"),
    "two of them": (
        1e9 + np.array([0.25, 0.5]),
        "2 become 1; subtract its least value or its mean",
    ),
    "with holes": (np.r_[math.nan, -1e9 - np.arange(20.0)], "is -1000000019 to -1000000000, "),
    "a week": (1.7e9 + 604_800 * rng.random(200_000), None),
    "metres": (52.5 + 0.001 * rng.normal(size=200_000), None),
    "prices": (rng.integers(99_990, 100_010, 200_000) / 100, None),
    "years": (rng.integers(1990, 2030, 2000), None),
    "steps of float32": (1e9 + 64.0 * rng.integers(0, 20, 2000), None),
    "pressure": (101_325 + 30 * rng.normal(size=2000), None),
    "large": (1e30 * rng.normal(size=2000), None),
}


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("kind", [None, "gaussian"])
@pytest.mark.parametrize("door", ["frame", "array"])
def test_numbers_that_float32_cannot_tell_apart_are_one_line(case, kind, door):
    values, line = FAR[case]
    x = values if door == "array" else {"0": values}
    if line is None:
        assert as_table(x, {"0": kind} if kind else None).columns
        return
    with pytest.raises(ValueError, match=f"column '0' {line}|column '0' is .*{line}") as found:
        as_table(x, {"0": kind} if kind else None)
    assert "\n" not in str(found.value)
    assert as_table(values - np.nanmin(values)).columns


def test_large_integers_of_few_values_are_a_frames_categories():
    assert as_table({"id": 2**40 + LONG[:90] % 3}).x.unique().tolist() == [0, 1, 2]


BAD_TABLES = {
    "a,b\n1,2\n3,4\n5\n": "cannot be read: .*Expected 2 columns, got 1",
    "": "is empty",
    "a,b\n": "has no rows",
    "a,b\n1,x\n1,y\n": "column 'a' has one value, 1: leave it out, columns={'a': None}",
    "a,b\n1,inf\n2,3\n4,1.5\n": "column 'b' is inf in row 0: make it missing",
    "a,b\n1,\n2,\n3,\n": "column 'b' has no values",
    "a,a\n1,2\n3,4\n": "several columns of the name 'a'",
    "1.5,2\n3,4\n": "must name its columns in its first line",
    "a,b\n1,2.5\n2,tall\n3,1.5\n": "column 'b' holds numbers, and 'tall': mend it, or leave",
    'a,b\n1,"3,1"\n2,"-2,5"\n3,"0,25"\n': "column 'b' holds numbers with a decimal comma, such as",
    "a,b\n1,1_500\n2,2_500\n3,5_000\n": "column 'b' holds numbers written as text, such as '1_500'",
    "a,b\n1,Ann\n2,Bea\n3,Cyd\n": "column 'b' is text with 3 different values in 3 rows, such as",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_a_table_that_cannot_be_modelled_is_one_line(tmp_path, text):
    with pytest.raises(ValueError, match=BAD_TABLES[text]) as found:
        table_of(text, tmp_path)
    assert "\n" not in str(found.value)


def test_a_number_after_many_integers_may_have_a_fraction(tmp_path):
    text = "a\n" + "1\n" * 600_000 + "2\n3\n2.5\n"
    assert table_of(text, tmp_path).x[-1].item() == 2.5


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_found(tmp_path, separator):
    text = "a;b;c,d\n1;2.5;3\n2;3.5;4\n".replace(";", separator)
    assert read_csv(tmp_path, text).column_names == ["a", "b", "c,d"]


def read_csv(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_table(path)


BAD_EDITS = {
    "nme": "the data has no column 'nme'|there is no column 'nme'",
    "colour": "column 'colour' holds 'red', no numbers",
    "step": "column 'step' has 3 different values, a bernoulli one has 2",
    "count": "column 'count' holds 0, so it is not lognormal",
    "size": "column 'size' must be one of gaussian, .*, got 'normal'",
}
EDITS = {"nme": None, "colour": "poisson", "step": "bernoulli", "count": "lognormal"}
EDITS |= {"size": "normal"}


@pytest.mark.parametrize("name", BAD_EDITS)
def test_an_edit_that_does_not_fit_is_one_line(name):
    with pytest.raises(ValueError, match=BAD_EDITS[name]):
        as_table(NAMED, {name: EDITS[name]})


def test_large_integers_of_which_some_are_missing_are_not_read_as_others():
    ids = [2**60 + row if row % 3 else None for row in range(300)]
    with pytest.raises(ValueError, match="float32 cannot tell its values apart: 200 become 1"):
        as_table(pa.table({"a": pa.array(ids, pa.int64())}))


def test_numbers_too_small_for_a_logarithm_in_float32():
    """They are guessed as another kind; a lognormal column says what is the matter."""
    values = np.geomspace(1e-80, 1, 300)
    column = as_table({"p": values}).columns[0]
    assert column["kind"] in ("gaussian", "student_t")
    tiny = "column 'p'.* holds 1e-80, which float32 takes for 0: .* or store its logarithm"
    with pytest.raises(ValueError, match=tiny):
        as_table({"p": values}, {"p": "lognormal"})
    of_others = as_table({"p": np.geomspace(1e-30, 1, 300)}).columns
    assert of_others[0]["kind"] == "lognormal"
    with pytest.raises(ValueError, match=tiny):
        as_table({"p": values}, of_others)


def test_a_column_of_numbers_may_be_empty_in_another_table():
    columns = as_table(NAMED).columns
    table = of_named(raw() | {"size": np.array([None] * 5, object)}, columns)
    at = [column["name"] for column in columns].index("size")
    assert table.x[:, at].isnan().all() and not table.x[:, -1].isnan().all()


def test_a_file_that_is_not_in_utf8_is_one_line(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("a,b\n1,é\n2,è\n".encode("latin-1"))
    with pytest.raises(ValueError, match="table.csv is not in UTF-8: save it as that"):
        read_table(path)


def test_a_separator_within_quotes_is_none(tmp_path):
    assert read_csv(tmp_path, '"a;x;y",b\n1,2\n').column_names == ["a;x;y", "b"]


def test_what_another_table_lacks_or_has_anew_is_said():
    columns = as_table(NAMED).columns
    fewer = {name: values for name, values in raw().items() if name != "count"}
    with pytest.raises(ValueError, match="test.csv has no column 'count'; its columns: size, "):
        of_named(fewer, columns, where="test.csv")
    other = raw(colour=["red", "blue", None, "red", "red"])
    with pytest.raises(ValueError, match="'colour' of test.csv has 'blue', the training data only"):
        of_named(other, columns, where="test.csv")


def test_dates_are_refused_unless_they_are_left_out():
    table = pa.table({"a": [1.5, 2.5], "day": [date(2020, 1, 1), date(2020, 1, 2)]})
    with pytest.raises(ValueError, match="column 'day' holds date32.*: leave it out"):
        as_table(table)
    first = as_table(table, {"day": None})
    assert first.x.shape == (2, 1)
    for same in (table, dict(zip(table.column_names, table.columns, strict=True))):
        assert torch.equal(as_table(same, first.columns).x, first.x)


NUMBERS = KINDS["gaussian"][:40]
BAD_COLUMNS = {
    "text": (
        [f"{v:.3f}" for v in NUMBERS],
        r"numbers written as text, .*frame\['a'\].astype\(float",
    ),
    "dates": (np.arange(40).astype("datetime64[D]"), "holds datetime64.*, neither numbers nor"),
    "complex": (NUMBERS + 1j, "holds complex128, neither numbers nor text: leave it out"),
    "short": (NUMBERS[:30], "the data has 30 values in column 'a' and 40 in 'b': a table has one"),
    "huge": (1e300 * NUMBERS, r"column 'a' is .*e\+.* in row 0: make it missing"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_a_column_that_is_no_data_is_one_line(case):
    values, line = BAD_COLUMNS[case]
    with pytest.raises(ValueError, match=line) as found:
        as_table({"a": values, "b": NUMBERS})
    assert "\n" not in str(found.value)


def test_a_frame_with_numbers_as_text_says_so():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="column 'a' holds numbers written as text"):
        as_table(pandas.DataFrame({"a": BAD_COLUMNS["text"][0], "b": NUMBERS}))
    with pytest.raises(ValueError, match="there are several columns of the name 'a'"):
        as_table(pa.table([NUMBERS, NUMBERS], names=["a", "a"]))
    with pytest.raises(ValueError, match="column 'a' is inf in row 1: make it missing"):
        as_table({"a": [0.0, math.inf, 1.0], "b": [1, 2.5, 3]}, {"a": "ordinal"})


@pytest.mark.parametrize(
    ("x", "line"),
    [
        (np.array(["a", "b"]), "must hold numbers"),
        (np.zeros((2, 3, 4, 5, 6)), r"got \[2, 3, 4, 5, 6\]"),
        (np.zeros((0, 3)), r"got \[0, 3\]"),
        (np.array([[1.0, math.inf], [2.0, 0.5], [1.5, 3.0]]), "column '1' is inf in row 0"),
        (np.full((2, 1, 2, 2), math.inf), "infinite in row 0"),
    ],
)
def test_an_array_that_is_no_data_is_one_line(x, line):
    with pytest.raises(ValueError, match=line):
        as_table(x)


# Files of arrays


ARRAY = rng.normal(size=(20, 3)).astype(np.float32)


def written(tmp_path, suffix):
    from safetensors.numpy import save_file

    path = tmp_path / f"x{suffix}"
    write = {
        ".npy": lambda: np.save(path, ARRAY),
        ".npz": lambda: np.savez(path, y=np.arange(20), x=ARRAY),
        ".safetensors": lambda: save_file({"x": ARRAY, "y": np.arange(20)}, path),
        ".pt": lambda: torch.save(torch.from_numpy(ARRAY), path),
    }
    write[suffix]()
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_arrays_in_files_are_mapped_and_cannot_be_changed(tmp_path, suffix):
    path = written(tmp_path, suffix)
    before = path.read_bytes()
    x = open_arrays(path)["x"]
    np.testing.assert_array_equal(x, ARRAY)
    x[:] = 0
    del x
    assert path.read_bytes() == before
    if suffix != ".pt":  # torch's own
        assert isinstance(open_arrays(path)["x"], np.memmap)


def test_a_compressed_archive_is_read_too(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=ARRAY, y=ARRAY[0])
    np.testing.assert_array_equal(open_arrays(tmp_path / "x.npz")["x"], ARRAY)


def test_no_program_in_a_file_is_run(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.savez(tmp_path / "x.npz", np.array([{"a": 1}]), allow_pickle=True)
    torch.save(print, tmp_path / "x.pt")
    torch.save({"a": [1]}, tmp_path / "list.pt")
    for name in ("x.npy", "x.npz", "x.pt", "list.pt"):
        with pytest.raises(ValueError, match="must hold|cannot be read") as found:
            open_arrays(tmp_path / name)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_half_a_file_is_one_line(tmp_path, suffix, share):
    path = written(tmp_path, suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=str(path)) as found:
        open_arrays(path)
    assert "\n" not in str(found.value)
