import math
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

import train as train_py
from commandline import places
from datamodules.arrays import Arrays
from datamodules.base import DataModule
from datamodules.dataset import FromDataset
from datamodules.digits import Digits
from tasks import build
from vae_lab import VAE
from vae_lab.data.tables import encode_array
from vae_lab.data.values import fill_array

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in train_py.QUIET]

rng = np.random.default_rng(0)
ARRAYS = {
    "vectors": rng.normal(size=(60, 3)),
    "integers": rng.integers(5, 8, (60, 4)),
    "bits": rng.random((60, 4)) > 0.5,
    "series": rng.normal(size=(60, 5, 2)).astype(np.float32),
    "floats": rng.normal(size=(60, 1, 4, 4)).astype(np.float32),
    "pictures": rng.integers(0, 256, (60, 1, 4, 4)).astype(np.uint8),
    "grey": rng.integers(0, 256, (60, 4, 4)).astype(np.uint8),
}
SMALL = {"batch_size": 7, "eval_batch_size": 4, "num_workers": 0}


class Items(torch.utils.data.Dataset):
    def __init__(self, x, y=None):
        self.x, self.y = torch.from_numpy(x), y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, number):
        return self.x[number] if self.y is None else (self.x[number], int(self.y[number]))


def saved(tmp_path, array, name="x.npy"):
    np.save(tmp_path / name, array)
    return str(tmp_path / name)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return str(tmp_path / "x.npz")


def ready(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def batches(datamodule):
    """Two epochs of training, validation and test."""
    train = datamodule.train_dataloader()
    found = []
    for epoch in range(2):
        train.start_at(epoch, 0)
        found += train
    return found + [*datamodule.val_dataloader(), *datamodule.test_dataloader()]


def same(one, other):
    pairs = [*zip(batches(ready(one)), batches(ready(other)), strict=True)]
    return all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in pairs)


@pytest.mark.parametrize("kind", ARRAYS)
def test_what_is_read_from_the_file_is_what_is_in_memory(tmp_path, kind):
    path = saved(tmp_path, ARRAYS[kind])
    settings = SMALL | ({"binarize": "stochastic"} if kind in ("pictures", "grey") else {})
    in_memory = Arrays(train=path, **settings)
    streamed = Arrays(train=path, **settings, memory_gb=0)
    assert same(in_memory, streamed)
    values = [data.train_values() for data in (in_memory, streamed)]
    assert torch.equal(*values)
    assert torch.equal(in_memory.train_mean(), streamed.train_mean())
    assert next(iter(in_memory.val_dataloader())).x.shape[1:] == in_memory.shape
    assert in_memory.own_likelihood() == streamed.own_likelihood()


@pytest.mark.parametrize("kind", [kind for kind in ARRAYS if kind != "grey"])
@pytest.mark.parametrize("memory_gb", [0, 1])
def test_a_dataset_of_the_rows_is_the_same(tmp_path, kind, memory_gb):
    array = ARRAYS[kind]
    y = np.arange(len(array))
    np.savez(tmp_path / "x.npz", x=array, y=y)
    file = Arrays(train=str(tmp_path / "x.npz"), labels="y", **SMALL)
    assert same(file, FromDataset(dataset=Items(array, y), **SMALL, memory_gb=memory_gb))


def test_processes_read_the_same(tmp_path):
    path = saved(tmp_path, ARRAYS["series"])
    one, several = (
        ready(Arrays(train=path, **SMALL | {"num_workers": n}, memory_gb=0)) for n in (0, 2)
    )
    try:
        assert same(one, several)
    finally:
        several.teardown("fit")


def test_pictures_of_bytes_are_those_of_every_other_data_set(tmp_path):
    digits = Digits(binarize="stochastic", batch_size=50, val_size=200)
    images = digits.load()
    train, test = (
        saved(tmp_path, images.train.numpy()),
        saved(tmp_path, images.test.numpy(), "t.npy"),
    )
    settings = {"binarize": "stochastic", "batch_size": 50, "val_size": 200}
    arrays = Arrays(train=train, test=test, **settings)
    ready(digits), ready(arrays)
    assert all(torch.equal(a.x, b.x) for a, b in zip(batches(digits), batches(arrays), strict=True))
    assert torch.equal(digits.train_mean(), arrays.train_mean())
    assert arrays.own_likelihood() == digits.own_likelihood()


def test_splits_that_are_given_are_taken_whole(tmp_path):
    rows = ARRAYS["vectors"]
    val = saved(tmp_path, rows[:9], "val.npy")
    test = saved(tmp_path, rows[9:20], "test.npy")
    data = ready(Arrays(train=saved(tmp_path, rows), val=val, test=test, **SMALL))
    found = {name: len(part) for name, part in data._splits.items()}
    assert found == {"train": 60, "val": 9, "test": 11}
    assert torch.equal(data._splits["val"].images, torch.from_numpy(rows[:9]).float())


def test_without_them_they_are_taken_of_the_training_data(tmp_path):
    path = saved(tmp_path, ARRAYS["vectors"])
    data = ready(Arrays(train=path, test_size=12, val_size=0.25, **SMALL))
    parts = [part.images for part in data._splits.values()]
    assert [len(part) for part in parts] == [12, 36, 12]
    assert len(torch.cat(parts).unique(dim=0)) == 60


def test_missing_values_are_kept_and_told(tmp_path):
    x = ARRAYS["vectors"].copy()
    x[5, 1] = math.nan
    likelihood = Arrays(train=saved(tmp_path, x), **SMALL).own_likelihood()
    assert likelihood["missing"] and [c["kind"] for c in likelihood["columns"]] == ["gaussian"] * 3
    whole = Arrays(train=saved(tmp_path, ARRAYS["vectors"]), **SMALL).own_likelihood()
    assert not whole["missing"]


def test_what_is_masked_in_a_dataset_is_missing():
    data = FromDataset(dataset=[*np.ma.masked_greater(ARRAYS["vectors"], 2)], **SMALL)
    assert data.own_likelihood()["missing"]
    x = torch.cat([batch.x for batch in batches(ready(data))])
    assert x.isnan().any() and x.nan_to_num(0).max() <= 2


def test_a_table_has_its_columns_and_labels(tmp_path):
    pytest.importorskip("pyarrow")
    lines = [f"{i},{i % 3 + 0.5 * i},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["id,size,kind", *lines]))
    data = ready(
        Arrays(train=str(tmp_path / "t.csv"), columns={"id": None}, labels="kind", **SMALL)
    )
    assert data.schema == [{"name": "size", "kind": "gaussian"}] and data.shape == (1,)
    assert "size  gaussian" in data.guess
    x, y, _ = next(iter(data.test_dataloader()))
    assert x.shape == (4, 1) and set(y.tolist()) <= {0, 1}
    again = Arrays(train=str(tmp_path / "t.csv"), columns=data.schema, labels="kind", **SMALL)
    assert same(data, again) and not again.guess
    assert data.classes == 2 and data.attributes is None


def test_a_column_of_dates_is_left_out_for_good(tmp_path):
    """The columns that a run keeps name no others, and those of a file for the test neither."""
    pytest.importorskip("pyarrow")
    lines = [f"{i % 3 + 0.5 * i},2024-01-{i % 28 + 1:02d}" for i in range(60)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["size,day", *lines]))
    data = ready(Arrays(train=str(path), test=str(path), columns={"day": None}, **SMALL))
    assert same(data, Arrays(train=str(path), test=str(path), columns=data.schema, **SMALL))


def test_text_stays_text_where_its_values_look_like_numbers(tmp_path):
    """In a file for the test, and when a run's columns read a part of its data."""
    pytest.importorskip("pyarrow")
    lines = [f"{i % 3 + 0.5 * i},{'1A2'[i % 3]},{'3B'[i % 2]}" for i in range(60)]
    path, other = tmp_path / "t.csv", tmp_path / "u.csv"
    path.write_text("\n".join(["size,grade,kind", *lines]))
    other.write_text("size,grade,kind\n" + "0.5,1,3\n1.5,2,3\n" * 10)
    data = Arrays(train=str(path), test=str(other), labels="kind", **SMALL).opened
    assert data.test.images[:2].tolist() == [[0.5, 0], [1.5, 1]]
    assert data.test.labels.tolist() == [0] * 20
    part = Arrays(train=str(other), columns=data.columns, **SMALL).opened.train
    assert torch.equal(part.images, data.test.images)
    assert part.original(torch.tensor([1, 2]))["grade"].to_pylist() == ["2", "1"]


def test_a_class_has_its_number_in_every_table(run, capsys):
    """A run keeps the values of its labels; another table has other ones first."""
    pytest.importorskip("pyarrow")
    rows = [f"{i % 7 + i / 60},{i % 5 - i / 30},{'cab'[i % 3]}" for i in range(60)]
    Path("t.csv").write_text("\n".join(["size,width,kind", *rows]))
    Path("u.csv").write_text("\n".join(["size,width,kind", *rows[::3], *rows[2::3]]))
    Path("v.csv").write_text("\n".join(["size,width,kind", *rows[:9], "1,2,d"]))
    line = ("data=arrays", "data.train=t.csv", "data.labels=kind", "model.condition=labels")
    run(*line, "data.batch_size=10", *SHORT, "run_dir=a")
    assert OmegaConf.load("a/config.yaml").data.class_names == ["a", "b", "c"]
    vae = VAE.from_pretrained("a")
    assert vae.condition.names == ["a", "b", "c"] and vae.sample(2, "c").shape == (2, 2)
    run("task=encode", "checkpoint=a", "data.test=u.csv", "encode.out=z.npy")
    assert np.load("z.y.npy").tolist() == [2] * 20 + [1] * 20
    run("task=evaluate", "checkpoint=a", "data.train=u.csv", "evaluate.samples=2")
    run("resume=a", "trainer.max_epochs=3")
    with pytest.raises(SystemExit):
        run("task=encode", "checkpoint=a", "data.test=v.csv", "encode.out=w.npy")
    assert "'kind' of v.csv has 'd', the training data only 'a', 'b'" in capsys.readouterr().err


def test_several_columns_are_attributes(tmp_path):
    pytest.importorskip("pyarrow")
    lines = [f"{i % 7},{i % 3 + 0.5 * i},{'ab'[i % 2]}" for i in range(60)]
    path, other = tmp_path / "t.csv", tmp_path / "u.csv"
    path.write_text("\n".join(["age,size,kind", *lines]))
    other.write_text("age,size,kind\n3,1.5,b\n4,2.5,b\n")
    data = Arrays(train=str(path), test=str(other), labels=["age", "kind"], **SMALL)
    assert [c["name"] for c in data.schema] == ["size"] and data.classes is None
    assert data.attributes == ("age", "kind=a", "kind=b")
    y = ready(data).train_labels()
    assert y.dtype == torch.float32 and y.shape == (len(y), 3)
    assert (y[:, 1] + y[:, 2] == 1).all() and set(y[:, 0].tolist()) == set(range(7))
    assert data.opened.test.labels.tolist() == [[3, 0, 1], [4, 0, 1]]
    other.write_text("age,size,kind\n3,1.5,c\n")
    with pytest.raises(ValueError, match=r"u.csv has the attribute kind=c, which the training"):
        Arrays(train=str(path), test=str(other), labels=["age", "kind"], **SMALL).opened  # noqa: B018
    path.write_text("\n".join(["age,size,kind", ",2.5,a", *lines]))
    with pytest.raises(ValueError, match="column 'age' of .* has missing values, and an attribute"):
        Arrays(train=str(path), labels=["age"], **SMALL).opened  # noqa: B018
    array = Arrays(train=saved(tmp_path, ARRAYS["vectors"]), labels=["a"], **SMALL)
    with pytest.raises(ValueError, match="names columns of a table, .* holds arrays: type the"):
        array.opened  # noqa: B018


@pytest.mark.parametrize(
    ("labels", "classes", "attributes"),
    [
        (np.array([0, 2, 1] * 20), 3, None),
        (np.array([0.0, 2.0, math.nan] * 20), 3, None),
        (np.array([-1, 1] * 30), 2, None),
        (np.full(60, -1), None, None),
        (np.ones((60, 2)), None, ("0", "1")),
    ],
)
def test_a_conditional_model_is_told_of_the_labels(tmp_path, labels, classes, attributes):
    np.savez(tmp_path / "x.npz", x=np.random.rand(60, 3), y=labels)
    data = Arrays(train=str(tmp_path / "x.npz"), labels="y", **SMALL)
    assert (data.classes, data.attributes) == (classes, attributes)


@pytest.mark.parametrize("memory_gb", [0, 1])
@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_so_many_labels_are_known_as_are_asked_for(tmp_path, suffix, memory_gb):
    x, y = np.random.rand(60, 2), np.arange(60) % 3
    path = str(tmp_path / f"x{suffix}")
    if suffix == ".npz":
        np.savez(path, x=x, y=y)
    else:
        lines = [f"{a},{b},{c}" for (a, b), c in zip(x, y, strict=True)]
        Path(path).write_text("\n".join(["a,b,y", *lines]))
    few = Arrays(train=path, labels="y", labelled=6, memory_gb=memory_gb, **SMALL)
    whole = Arrays(train=path, labels="y", memory_gb=memory_gb, **SMALL)
    for data in (few, whole):
        ready(data)
    known = few.train_labels() >= 0
    assert few.train_labels()[known].bincount().tolist() == [2, 2, 2]
    assert torch.equal(few.train_labels()[known], whole.train_labels()[known])
    assert (whole.train_labels() >= 0).all()


BAD = {
    "no file": (
        lambda p: {"train": str(p / "nope.npy")},
        "data.train: there is no file .*nope.npy",
    ),
    "suffix": (lambda p: {"train": str(p / "x.h5")}, "data.train must be a file .npy .npz"),
    "another shape": (
        lambda p: {
            "train": saved(p, ARRAYS["vectors"]),
            "val": saved(p, ARRAYS["integers"], "v.npy"),
        },
        r"v.npy holds data of shape \[4\], .* of \[3\]",
    ),
    "other kinds": (
        lambda p: {"train": saved(p, ARRAYS["vectors"]), "val": str(p / "x.csv")},
        "data.val=.* must be a table or arrays",
    ),
    "of pictures": (
        lambda p: {"train": saved(p, ARRAYS["vectors"]), "binarize": "threshold"},
        r"data.binarize is for pictures of bytes \[N, C, H, W\], the data has the shape \[3\]",
    ),
    "bits as bytes": (
        lambda p: {"train": saved(p, np.eye(36, dtype=np.uint8).reshape(36, 1, 6, 6))},
        r"x.npy holds bytes of 0 and 1 only, and pictures have 0 to 255: store 255 \* x",
    ),
    "labels of text": (
        lambda p: (
            {"train": npz(p, x=ARRAYS["vectors"], y=["a"] * len(ARRAYS["vectors"]))}
            | {"labels": "y"}
        ),
        "labels must be numbers, got <U1: number the classes from 0",
    ),
    "labels with a fraction": (
        lambda p: (
            {"train": npz(p, x=ARRAYS["vectors"], y=np.full(len(ARRAYS["vectors"]), 0.5))}
            | {"labels": "y"}
        ),
        r"y of .*x.npz holds 0.5, and labels \[N\] are classes: store it as \[N, 1\] for an attr",
    ),
    "no labels": (
        lambda p: {"train": saved(p, ARRAYS["vectors"]), "labels": "y"},
        "has no array 'y'; it holds x",
    ),
    "video": (lambda p: {"train": saved(p, np.zeros((2, 3, 4, 5, 6)))}, r"got \[2, 3, 4, 5, 6\]"),
    "few": (
        lambda p: {"train": saved(p, ARRAYS["vectors"][:9]), "batch_size": 8},
        "type data.batch",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line(tmp_path, case):
    (tmp_path / "x.csv").write_text("a\n1\n")
    settings, line = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=line) as found:
        ready(Arrays(**SMALL | settings(tmp_path)))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        (3, "int has no __getitem__ and no __len__"),
        (Items(ARRAYS["vectors"][:0]), "data.dataset is empty"),
        ({1}, "set has no __getitem__$"),
    ],
)
def test_what_is_no_dataset_is_one_line(dataset, line):
    with pytest.raises(ValueError, match=line):
        FromDataset(dataset=dataset)


# The run


SHORT = ("experiment=smoke", "network.hidden=[4]", "model.latents=2", "trainer=cpu")


def test_a_run_keeps_what_the_data_decided(run, tmp_path):
    path = saved(tmp_path, ARRAYS["vectors"])
    run("data=arrays", f"data.train={path}", "data.batch_size=10", *SHORT, "run_dir=a")
    kept = OmegaConf.load("a/config.yaml")
    columns = [{"name": str(n), "kind": "gaussian"} for n in range(3)]
    own = {"_target_": "vae_lab.likelihoods.Columns", "columns": columns, "missing": False}
    assert kept.likelihood == kept.model.likelihood == own and kept.data.columns == columns
    run("resume=a", "trainer.max_epochs=3")
    run("task=test", "checkpoint=a")
    run("task=sample", "checkpoint=a")
    assert np.load("a/samples.npy").shape == (64, 3)
    drawn = {path.stem for path in Path("a/images").iterdir()}
    assert {"samples", "correlations", "reconstructions", "interpolation"} <= drawn


def test_the_pictures_own_likelihood_is_what_it_was(run):
    run(*SHORT, "run_dir=a")
    kept = OmegaConf.load("a/config.yaml")
    assert kept.likelihood == {"_target_": "vae_lab.likelihoods.Bernoulli"}


@pytest.mark.parametrize("network", ["mlp", "linear", "temporal_conv", "transformer"])
def test_every_network_of_series_trains_on_them(run, tmp_path, network):
    path = saved(tmp_path, rng.normal(size=(200, 8, 2)).cumsum(1))
    lines = ("data=arrays", f"data.train={path}", "data.batch_size=20", f"network={network}")
    run("experiment=smoke", *lines, "trainer=cpu", "model.latents=2", "run_dir=a")


def test_auto_finds_a_run_on_arrays(run, tmp_path, capsys):
    path = saved(tmp_path, ARRAYS["vectors"])
    lines = (
        "data=arrays",
        f"data.train={path}",
        "data.batch_size=10",
        "data.columns={0: student_t}",
    )
    run(*SHORT, *lines, "resume=auto", "trainer.max_epochs=3")
    run(*SHORT, *lines, "resume=auto", "trainer.max_epochs=4")
    assert len([*Path("runs").iterdir()]) == 1
    assert "resuming" in capsys.readouterr().out


def test_the_likelihood_of_a_table_takes_its_columns_and_other_settings(run, tmp_path):
    path = saved(tmp_path, rng.poisson(30.0, (60, 3)))
    line = ("likelihood=columns", "likelihood.size_factor=true", "likelihood.missing=true")
    counts = "data.columns={0: poisson, 1: poisson, 2: poisson}"
    data = ("data=arrays", f"data.train={path}", "data.batch_size=10", counts)
    run(*data, *SHORT, *line, "run_dir=a")
    likelihood = VAE.from_pretrained("a").likelihood
    assert [column["kind"] for column in likelihood.columns] == ["poisson"] * 3
    assert likelihood.size_factor and likelihood.missing


def test_a_series_is_trained_evaluated_and_reported(run, tmp_path, capsys):
    path = saved(tmp_path, rng.normal(size=(200, 5, 2)).cumsum(1))
    lines = ("data=arrays", f"data.train={path}", "data.batch_size=20", "report=true")
    run(*SHORT, *lines, "run_dir=a")
    assert "examples/s" in capsys.readouterr().out
    run("task=evaluate", "checkpoint=a", "evaluate.samples=5", "evaluate.ais_images=2")
    run("task=report", "checkpoint=a")
    told = Path("a/report.html").read_text()
    for text in (
        "over time; a row for each channel",
        "Left out: mse, psnr",
        "rmse 0",
        "examples of",
    ):
        assert text in told, text


# Classes of one's own


class Bare(pl.LightningDataModule):
    pass


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Items", "is a Dataset: type data=dataset data.dataset._target_="),
        ("Bare", "lacks `shape`"),
        ("ready", "must make a LightningDataModule"),
    ],
)
def test_a_class_that_does_not_fit_is_one_line(name, line):
    arguments = {"Items": {"x": ARRAYS["vectors"]}, "ready": {"datamodule": Bare()}}.get(name, {})
    made = globals()[name](**arguments) if name != "ready" else 3
    with pytest.raises(ValueError, match=line):
        build._check_datamodule(made, f"tests.{name}")


def test_a_datamodule_of_ones_own_has_the_likelihood_that_it_had():
    assert DataModule().own_likelihood() == {"_target_": "vae_lab.likelihoods.Bernoulli"}


OWN = """
import torch
from dataclasses import dataclass
from datamodules.base import ImageDataModule, Images

class Walks(torch.utils.data.Dataset):
    def __init__(self, number=60):
        self.x = torch.randn(number, 3, generator=torch.Generator().manual_seed(0))
    def __len__(self):
        return len(self.x)
    def __getitem__(self, row):
        return self.x[row]

@dataclass(kw_only=True, eq=False)
class Squares(ImageDataModule):
    side: int = 3
    batch_size: int = 10
    shape = (1, 8, 8)
    def load(self):
        x = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
        for row in range(60):
            x[row, 0, row % 5 : row % 5 + self.side] = 255
        return Images(x[:50], torch.zeros(50).long(), x[50:], torch.zeros(10).long())
"""


@pytest.fixture
def own_folder(tmp_path):
    """A folder of files and classes, and nothing of it is left in this process."""
    folder = tmp_path / "own"
    (folder / "data").mkdir(parents=True)
    (folder / "squares_of_mine.py").write_text(OWN)
    settings = "_target_: squares_of_mine.Squares\nside: 2\nseed: ${seed}\n"
    (folder / "data" / "squares.yaml").write_text(settings)
    path = [*sys.path]
    yield str(folder)
    places.OWN.clear()
    sys.path[:] = path
    sys.modules.pop("squares_of_mine", None)


def test_a_folder_of_ones_own_has_files_and_classes(run, own_folder):
    run("--config-dir", own_folder, "data=squares", *SHORT, "run_dir=a", "data.side=4")
    assert OmegaConf.load("a/config.yaml").data.side == 4
    run(f"--config-dir={own_folder}", "data._target_=squares_of_mine.Squares", *SHORT, "run_dir=b")
    assert OmegaConf.load("b/config.yaml").data == {
        "_target_": "squares_of_mine.Squares",
        "seed": 0,
    }
    dataset = "data.dataset._target_=squares_of_mine.Walks", "data.dataset.number=50"
    run(
        *SHORT,
        "--config-dir",
        own_folder,
        "data=dataset",
        *dataset,
        "data.batch_size=9",
        "run_dir=c",
    )
    typed = Path("c/commands.txt").read_text()
    assert (
        f"--config-dir {own_folder}" in typed
        and "+" not in typed
        and "data.dataset.number=50" in typed
    )


def test_an_array_without_names_has_the_columns_of_a_table_in_their_order():
    columns = [{"name": name, "kind": "gaussian"} for name in ("age", "weight")]
    numbered = [{"name": name, "kind": "gaussian"} for name in ("2", "0")]
    array = np.arange(6.0).reshape(2, 3)
    assert encode_array(array[:, :2], columns, "x").tolist() == [[0, 1], [3, 4]]
    assert encode_array(array, numbered, "x").tolist() == [[2, 0], [5, 3]]
    with pytest.raises(ValueError, match="x has 1 columns, there must be 2 or more"):
        encode_array(array[:, :1], columns, "x")
    missing = np.array([[False, True], [False, False]])
    filled = fill_array(array[:, :2], columns, missing, np.full((2, 2), 9.0))
    assert filled.tolist() == [[0, 9], [3, 4]]
