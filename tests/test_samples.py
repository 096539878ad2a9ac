"""task=sample: draws of a model as a picture, as an array or as a table."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tiny import randomize

import train as train_py
import vae_lab
from tasks import sample
from vae_lab import VAE, pictures
from vae_lab.conditions import Attributes, InferredLabels, Labels
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli, Columns
from vae_lab.networks import MLP

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in train_py.QUIET]

TABLE = [
    {"name": "town", "kind": "categorical", "values": ["Bath", "York"]},
    {"name": "age", "kind": "poisson"},
    {"name": "label", "kind": "gaussian"},
]
NUMBERS = TABLE[1:]
CONDITIONS = {
    "none": lambda: None,
    "labels": lambda: Labels(3),
    "names": lambda: Labels(3, names=["a", "b", "c"]),
    "inferred": lambda: InferredLabels(3, names=["a", "b", "c"]),
    "mixed": lambda: Labels(3, names=["a", 7, True]),
    "attributes": lambda: Attributes(2, ["age", "size"]),
}
PICTURES, ROWS = ((1, 4, 5), Bernoulli()), ((3,), Columns(TABLE, False))


@pytest.fixture
def saved(tmp_path):
    """A release of a model of these data and this condition."""

    def saved(kind, condition="none"):
        shape, likelihood = kind
        torch.manual_seed(1)
        vae = VAE(shape, MLP((3,)), Gaussian(2), likelihood, condition=CONDITIONS[condition]())
        randomize(vae).save_pretrained(tmp_path / "m")
        return vae

    return saved


def drawn(run, *line):
    run("task=sample", "checkpoint=m", *line)


@pytest.fixture
def given(monkeypatch):
    """The y of each row that is drawn, and how many were drawn at a time."""
    noted, plain = [], VAE.sample

    def note(vae, count, y=None, temperature=1.0):
        noted.append((count, None if y is None else y.tolist(), temperature))
        return plain(vae, count, y, temperature)

    monkeypatch.setattr(VAE, "sample", note)
    return noted


@pytest.mark.parametrize(
    ("condition", "columns"),
    [
        ("none", {}),
        ("labels", {"label_": [*range(3)]}),
        ("names", {"label_": ["a", "b", "c"]}),
        ("inferred", {"label_": ["a", "b", "c"]}),
        ("mixed", {"label_": ["a", "7", "True"]}),
        ("attributes", {"age_": None, "size": None}),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_of_a_table_have_its_values_and_what_they_were_drawn_for(
    run, saved, given, condition, columns, suffix
):
    """A column of the same name keeps it."""
    saved(ROWS, condition)
    drawn(run, "sample.count=9", f"sample.out=x{suffix}")
    read = pyarrow.csv.read_csv if suffix == ".csv" else pyarrow.parquet.read_table
    table = read(f"x{suffix}").to_pydict()
    assert [*table] == ["town", "age", "label", *columns]
    assert {len(values) for values in table.values()} == {9}
    assert {*table["town"]} <= {"Bath", "York"} and all(age >= 0 for age in table["age"])
    for name, values in columns.items():
        if values is not None:
            assert table[name] == [value for value in values for _ in range(3)]
    ((_, y, _),) = given
    if condition == "attributes":
        assert np.allclose(np.array([table["age_"], table["size"]]).T, y)
    elif condition != "none":
        assert y == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("condition", ["labels", "attributes"])
def test_an_array_has_its_y_beside_it(run, saved, given, condition):
    saved(((2,), Columns(NUMBERS, False)), condition)
    drawn(run, "sample.out=x.npy", "sample.count=7")
    ((count, y, _),) = given
    assert np.load("x.npy").shape == (7, 2) and count == 7
    assert np.array_equal(np.load("x.y.npy"), np.array(y, np.load("x.y.npy").dtype))


def test_it_is_drawn_part_by_part(run, saved, given, monkeypatch):
    monkeypatch.setattr(sample, "images_at_once", lambda *_: 4)
    saved(ROWS, "names")
    drawn(run, "sample.count=10", "sample.y=[c,a]", "sample.out=x.csv")
    assert [y for _, y, _ in given] == [[2, 2, 2, 2], [2, 0, 0, 0], [0, 0]]
    assert pyarrow.csv.read_csv("x.csv")["label_"].to_pylist() == [*"cccccaaaaa"]


@pytest.mark.parametrize(
    ("condition", "line", "expected"),
    [
        ("none", "", (64, None, 1.0)),
        ("none", "sample.temperature=0.5", (64, None, 0.5)),
        ("labels", "", (24, [n // 8 for n in range(24)], 1.0)),
        ("labels", "sample.y=1", (64, [1] * 64, 1.0)),
        ("names", "sample.y=b sample.count=3", (3, [1] * 3, 1.0)),
        ("attributes", "sample.y=[1,0.5] sample.count=2", (2, [[1.0, 0.5]] * 2, 1.0)),
    ],
)
def test_how_many_and_for_what(run, saved, given, condition, line, expected):
    saved(PICTURES, condition)
    drawn(run, *line.split())
    assert given == [expected]
    assert Path("m/samples.png").is_file()


def test_draws_of_a_label_are_of_that_label(run):
    """Two towns, and a model that knows of which of them it is asked to draw."""
    torch.manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.stack([y * 8.0 - 4, torch.zeros(400)], 1) + torch.randn(400, 2)
    vae = vae_lab.fit(x, y=y, epochs=30, progress=False, device="cpu")
    vae.save_pretrained("m")
    drawn(run, "sample.count=200", "sample.out=x.npy")
    means = np.load("x.npy")[:, 0].reshape(2, 100).mean(1)
    assert means == pytest.approx([-4, 4], abs=1)


def test_pictures_are_bytes_or_files(run, saved):
    saved(PICTURES)
    drawn(run, "sample.out=x.npy", "sample.count=3")
    drawn(run, "sample.out=folder", "sample.count=3")
    drawn(run, "sample.out=x.png", "sample.count=3")
    x = np.load("x.npy")
    assert x.shape == (3, 1, 4, 5) and x.dtype == np.uint8
    files = [np.asarray(Image.open(path)) for path in sorted(Path("folder").iterdir())]
    assert np.array_equal(np.stack(files), x[:, 0])  # of one seed
    with Image.open("x.png") as grid:
        assert grid.size == pictures.grid(torch.zeros(4, 1, 4, 5), 2).shape[:0:-1]
    drawn(run, "sample.out=y.npy", "sample.count=3", "seed=1")
    assert not np.array_equal(np.load("y.npy"), x)


@pytest.mark.parametrize(
    ("kind", "name"), [(ROWS, "csv"), (((2,), Columns(NUMBERS, False)), "npy")]
)
def test_without_a_file_it_lies_beside_the_model(run, saved, kind, name):
    """Text is in no array."""
    saved(kind)
    drawn(run)
    assert Path(f"m/samples.{name}").is_file()
    drawn(run, "run_dir=other")
    assert Path(f"other/samples.{name}").is_file()


LINES = {
    ("names", "sample.y=d sample.out=x.csv"): "y must be whole numbers, 0 to 2 (a, b, c), got 'd'",
    ("inferred", "sample.y=-1 sample.out=x.csv"): "leave out y for draws",
    ("none", "sample.y=1 sample.out=x.csv"): "leave it out, or train one with model.condition",
    ("none", "sample.out=x.npy"): "column 'town' holds text: type sample.out=FILE.csv",
    ("none", "sample.out=x.png"): "type sample.out=FILE.npy, or of a table",
    ("none", "sample.out=x"): "a folder is for grey or colour pictures",
    ("none", "sample.out=x.txt"): "must be a file .npy .csv .parquet .png, or a folder",
    ("none", "sample.count=0"): "sample.count must be positive, got 0",
    ("none", "sample.out=x.csv sample.temperature=-1"): "must not be negative",
    ("none", "seed=-1"): "seed must be in",
}


@pytest.mark.parametrize(("condition", "line"), LINES)
def test_a_mistake_is_one_line_and_leaves_nothing(run, saved, capsys, condition, line):
    saved(ROWS, condition)
    before = {*Path().rglob("*")}
    with pytest.raises(SystemExit) as caught:
        drawn(run, *line.split())
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert LINES[condition, line] in said, said
    assert {*Path().rglob("*")} == before
