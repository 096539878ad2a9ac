"""Data to latent variables in files and back, and holes filled: task=encode, decode and impute."""

import csv
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tiny import SHAPE, discrete_vae, grid_vae, randomize

import train as train_py
from datamodules.arrays import Arrays
from datamodules.dataset import FromDataset
from datamodules.digits import Digits
from datamodules.image_folder import ImageFolder
from tasks import convert
from vae_lab import VAE, conversion
from vae_lab.conditions import InferredLabels, Labels
from vae_lab.data import row_files
from vae_lab.data.values import to_array
from vae_lab.latents import LFQ, Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Bernoulli as Bits
from vae_lab.networks import MLP

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in train_py.QUIET]

rng = np.random.default_rng(0)
SHORT = ("experiment=smoke", "network.hidden=[4]", "trainer=cpu", "data.batch_size=10")
SMALL = ("data.eval_batch_size=7", "data.num_workers=0")
VECTORS = rng.normal(size=(60, 3))


def conditional(condition):
    return randomize(VAE(SHAPE, MLP((3,), "tanh"), Categorical(2, 3), Bits(), condition=condition))


VAES = {
    "numbers": lambda: discrete_vae(Gaussian(2)),
    "codes": lambda: discrete_vae(Categorical(2, 3)),
    "bits": lambda: discrete_vae(Bernoulli(3)),
    "counts": lambda: discrete_vae(Poisson(2)),
    "grid of codes": lambda: grid_vae(Categorical(2, 3)),
    "grid of numbers": lambda: grid_vae(Gaussian(2)),
    "labels": lambda: conditional(Labels(3)).double(),
    "inferred labels": lambda: conditional(InferredLabels(3)).double(),
}


@pytest.mark.parametrize("kind", VAES)
@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_codes_and_back_are_the_reconstruction(tmp_path, kind, suffix):
    """Of numbers it is their means."""
    vae = VAES[kind]()
    x = torch.rand(5, *vae.shape, dtype=torch.float64).round()
    y = torch.tensor([0, 2, 1, 1, 0]) if kind == "labels" else None
    what = "mean" if vae.latent.kind == "numbers" else "codes"
    found = conversion.encode(vae, x, y, what)
    assert what == "mean" or found.z.dtype == np.int64
    with row_files.latent_writer(tmp_path / f"z{suffix}", 5) as write:
        write(found)
    (read,) = row_files.LatentFile(tmp_path / f"z{suffix}").parts(9)
    back = conversion.decode(vae, read.z, read.y)
    assert torch.equal(back, vae.reconstruct(x, y))
    if kind == "grid of codes":
        assert found.z.shape == (5, 2, 2, 2)


def test_a_label_that_is_known_is_not_inferred():
    vae = VAES["inferred labels"]()
    x = torch.rand(6, *vae.shape, dtype=torch.float64).round()
    inferred = vae.classify(x)
    y = (inferred + 1) % 3
    y[3:] = -1
    found = conversion.encode(vae, x, y, "mean")
    assert found.y.tolist() == [*y[:3].tolist(), *inferred[3:].tolist()]
    assert np.array_equal(found.z, vae.encode(x, y).mean.detach())


@pytest.mark.parametrize("kind", ["numbers", "codes", "grid of codes"])
def test_means_and_samples_are_those_of_the_posterior(kind):
    vae = VAES[kind]()
    x = torch.rand(5, *vae.shape, dtype=torch.float64).round()
    q = vae.encode(x)
    assert np.array_equal(conversion.encode(vae, x).z, q.mean.detach())
    torch.manual_seed(3)
    drawn = q.sample()
    torch.manual_seed(3)
    found = conversion.encode(vae, x, what="sample").z
    assert np.array_equal(found, drawn)
    back = conversion.decode(vae, found.reshape(5, -1))
    assert torch.equal(back, vae.likelihood.mean(vae.decode(drawn)))


@pytest.mark.parametrize(
    ("z", "line"),
    [
        ([[0.0, 1.0, 2.0]], "z of 6 numbers, or 2 codes, got 3 in a row"),
        ([[0.0, 3.0]], "from 0 to 2, got 3 for variable 1"),
        ([[0.5, 1.0]], "from 0 to 2, got 0.5 for variable 0"),
        ([[np.nan, 1.0]], "must be finite"),
    ],
)
def test_what_is_no_z_is_one_line(z, line):
    with pytest.raises(ValueError, match=line):
        conversion.decode(VAES["codes"](), torch.tensor(z))


@pytest.mark.parametrize(
    ("latent", "z", "line"),
    [
        (Bernoulli(3), [[1, 0, 7]], "z must be from 0 to 1, got 7"),
        (LFQ(3), [[1, -1, 0]], "z must be from 0 to 1, got -1"),
        (Poisson(3), [[2, 0.5, -3]], "z must be from 0 to inf, got -3"),
    ],
    ids=["bits", "points", "counts"],
)
def test_bits_and_counts_have_bounds(latent, z, line):
    vae = VAE((4,), MLP((5,)), latent, Bits())
    with pytest.raises(ValueError, match=line):
        conversion.decode(vae, torch.tensor(z))
    assert conversion.decode(vae, torch.tensor(z).clamp(0, 1)).shape == (1, 4)


def test_the_files_of_a_longer_past_are_not_taken_for_new_ones(tmp_path):
    path = tmp_path / "z.npy"
    for row in (np.arange(2), None):
        with row_files.latent_writer(path, 2) as write:
            write(row_files.LatentRows(np.zeros((2, 3)), row))
        assert (tmp_path / "z.row.npy").exists() == (row is not None)


def test_a_file_beside_a_new_one_is_somebody_elses(tmp_path):
    own = tmp_path / "z.y.npy"
    own.write_bytes(b"mine")
    with row_files.latent_writer(tmp_path / "z.npy", 2) as write:
        write(row_files.LatentRows(np.zeros((2, 3))))
    assert own.read_bytes() == b"mine"


# The order


def saved(folder, array, name="x.npy"):
    np.save(folder / name, array)
    return str(folder / name)


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, row):
        return VECTORS[row]


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(60):
        pixels = np.full((4, 4), 4 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02}.png")
    return str(tmp_path / "pictures")


def small(cls, **settings):
    return cls(batch_size=10, eval_batch_size=7, **settings)


MAKE = {
    "file": lambda p: small(Arrays, train=saved(p, VECTORS), num_workers=0),
    "streamed": lambda p: small(Arrays, train=saved(p, VECTORS), num_workers=0, memory_gb=0),
    "dataset": lambda p: small(FromDataset, dataset=Items(), num_workers=0),
    "pictures": lambda p: small(
        ImageFolder, root=str(p / "pictures"), image_size=4, channels=1, num_workers=0
    ),
    "digits": lambda p: small(Digits),
}


@pytest.mark.parametrize("kind", MAKE)
def test_a_split_in_order_is_the_split(tmp_path, pictures, kind):
    """Its numbers are those of the rows in the file, of which "all" are all."""
    data = MAKE[kind](tmp_path)
    data.setup()
    whole = MAKE[kind](tmp_path)
    sources = whole.in_order("all")
    everything = [torch.cat([b.x for b in whole.loader_of(part)]) for part in sources]
    if kind in ("file", "streamed", "dataset"):
        assert torch.equal(everything[0], torch.from_numpy(VECTORS).float())
    assert len(everything) == (2 if kind == "digits" else 1)
    for split, rows in data._splits.items():
        (part,) = whole.in_order(split)
        assert (part.numbers.diff() > 0).all() and len(part.numbers) == len(rows)
        x = torch.cat([b.x for b in whole.loader_of(part)])
        of = everything[1 if kind == "digits" and split == "test" else 0]
        assert torch.equal(x, of[part.numbers])
        shuffled = torch.cat([b.x for b in data._loader(split, 7)])
        assert torch.equal(*(v.flatten(1).sum(1).sort().values for v in (x, shuffled)))


def test_files_of_their_own_are_whole_and_in_their_order(tmp_path):
    test = saved(tmp_path, VECTORS[:9], "t.npy")
    data = small(Arrays, train=saved(tmp_path, VECTORS), test=test, num_workers=0)
    (part,) = data.in_order("test")
    assert part.rows is None and torch.equal(part.numbers, torch.arange(9))
    assert [len(p.numbers) for p in data.in_order("all")] == [60, 9]


# The tasks


KEPT: dict[str, Path] = {}  # folders with runs that many tests look at, and their data


def copied(name, tmp_path, tmp_path_factory, train):
    """Trains once in this process, and gives each test a copy."""
    if name not in KEPT:
        folder = tmp_path_factory.mktemp(name)
        train(folder)
        KEPT[name] = folder
    shutil.copytree(KEPT[name], tmp_path, dirs_exist_ok=True)


@pytest.fixture
def vectors(run, tmp_path, tmp_path_factory):
    """A run on vectors, in a."""

    def train(folder):
        line = "data=arrays", f"data.train={saved(folder, VECTORS)}", *SHORT, *SMALL
        run(*line, "model=gaussian_vae", f"run_dir={folder / 'a'}")

    copied("vectors", tmp_path, tmp_path_factory, train)
    return run


def test_an_array_is_encoded_in_its_order_and_decoded(vectors):
    x = torch.from_numpy(VECTORS).float()
    vae = VAE.from_pretrained("a")
    vectors("task=encode", "checkpoint=a", "encode.split=all", "encode.out=z.npy")
    assert torch.allclose(torch.from_numpy(np.load("z.npy")), vae.encode(x).mean, atol=1e-6)
    assert not Path("z.row.npy").exists()
    vectors("task=encode", "checkpoint=a", "encode.out=t.npy")
    assert np.allclose(np.load("t.npy"), np.load("z.npy")[np.load("t.row.npy")], atol=1e-6)
    vectors("task=encode", "checkpoint=a", "encode.out=out/t.parquet")
    table = pyarrow.parquet.read_table("out/t.parquet")
    assert table.column_names[:2] == ["row", "z0"]
    assert np.array_equal(table["row"].to_numpy(), np.load("t.row.npy"))
    vectors("task=decode", "checkpoint=a", "decode.file=z.npy", "decode.out=x.npy")
    found = np.load("x.npy")
    assert found.dtype == np.float32
    assert np.allclose(found, vae.reconstruct(x), atol=1e-5)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_part_by_part_is_the_same_as_all_at_once(vectors, monkeypatch, suffix):
    line = ["task=encode", "checkpoint=a", "encode.split=all", "encode.what=mean"]
    vectors(*line, f"encode.out=one{suffix}", "data.eval_batch_size=99")
    monkeypatch.setattr(row_files, "BUFFER", 1)
    vectors(*line, f"encode.out=many{suffix}", "data.memory_gb=0", "data.eval_batch_size=4")
    if suffix == ".parquet":
        assert pyarrow.parquet.ParquetFile("many.parquet").num_row_groups == 15
    one, many = (row_files.LatentFile(Path(f"{n}{suffix}")) for n in ("one", "many"))
    assert one.count == many.count == 60
    for size in (7, 60):
        z = [np.concatenate([p.z for p in file.parts(size)]) for file in (one, many)]
        assert all(len(p.z) <= size for p in many.parts(size))
        assert np.allclose(*z, atol=1e-6)
    decoded = ["task=decode", "checkpoint=a", f"decode.file=many{suffix}", "decode.out=x.npy"]
    monkeypatch.setattr(convert, "images_at_once", lambda *_: 4)
    vectors(*decoded)
    assert np.load("x.npy").shape == (60, 3)


def test_another_file_than_that_of_the_run(vectors, tmp_path):
    new = rng.normal(size=(11, 3))
    path = saved(tmp_path, new, "new.npy")
    vectors("task=encode", "checkpoint=a", f"data.test={path}", "encode.out=z.csv")
    table = pyarrow.csv.read_csv("z.csv")
    mean = VAE.from_pretrained("a").encode(torch.from_numpy(new).float()).mean
    assert table.column_names[0] == "z0" and len(table) == 11
    assert np.allclose(table["z0"].to_numpy(), mean[:, 0].detach(), atol=1e-6)


TEXT = ["red", "green", "dark blue, or so"]


@pytest.fixture
def people(run, tmp_path, tmp_path_factory):
    """A table with holes, and a run on it, in b."""
    total, rng = 80, np.random.default_rng(1)
    size = [None if n % 7 == 3 else round(170 + 9 * rng.normal(), 2) for n in range(total)]
    table = pyarrow.table(
        {
            "id": [f"p{n}" for n in range(total)],
            "size": size,
            "colour": [None if n % 5 == 1 else TEXT[n % 3] for n in range(total)],
            "visits": pyarrow.array(rng.poisson(6, total)),
            "step": pyarrow.array([None if n % 9 == 0 else 3 + n % 4 for n in range(total)]),
        }
    )

    def train(folder):
        pyarrow.csv.write_csv(table, folder / "people.csv")
        pyarrow.parquet.write_table(table, folder / "people.parquet")
        lines = f"data.train={folder / 'people.csv'}", "data.columns={id: null}"
        run("data=arrays", *lines, *SHORT, *SMALL, f"run_dir={folder / 'b'}")

    copied("people", tmp_path, tmp_path_factory, train)
    return run, table


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back_with_its_names_values_and_types(people, suffix):
    run, table = people
    out = f"decode.out=back{suffix}"
    run("task=encode", "checkpoint=b", "encode.what=codes", "encode.split=all", "encode.out=z.npy")
    run("task=decode", "checkpoint=b", "decode.file=z.npy", out)
    read = pyarrow.csv.read_csv if suffix == ".csv" else pyarrow.parquet.read_table
    found = read(f"back{suffix}")
    wanted = table.drop_columns("id")
    assert found.column_names == wanted.column_names and len(found) == 80
    assert found.schema.field("colour").type == wanted.schema.field("colour").type
    assert set(found["colour"].to_pylist()) <= {*TEXT}
    assert set(found["step"].to_pylist()) <= {3, 4, 5, 6}
    vae = VAE.from_pretrained("b")
    x = Arrays(train="people.parquet", columns=vae.likelihood.columns).opened.train.images
    assert np.allclose(found["size"].to_numpy(), vae.reconstruct(x)[:, 0], rtol=1e-4)


def test_columns_that_the_model_does_not_know_stay_as_they_are_written(people):
    run, _ = people
    more = ["zip,note,when", *["00123,NA,2024-01-02 03:04"] * 78, ",,", '"0,1",a b,1.50']
    lines = zip(Path("people.csv").read_text().splitlines(), more, strict=True)
    Path("more.csv").write_text("".join(f"{known},{other}\n" for known, other in lines))
    run("task=impute", "checkpoint=b", "data.test=more.csv", "impute.out=full.csv")
    with Path("full.csv").open(newline="") as file:
        assert [row[-3:] for row in csv.reader(file)] == [*csv.reader(more)]


@pytest.mark.parametrize("draw", ["true", "false"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_holes_of_a_table_are_filled_and_nothing_else_changes(people, monkeypatch, draw, suffix):
    run, table = people
    monkeypatch.setattr(row_files, "BUFFER", 1)
    file = f"data.train=people{suffix}"
    run("task=impute", "checkpoint=b", file, f"impute.draw={draw}", f"impute.out=full{suffix}")
    read = pyarrow.csv.read_csv if suffix == ".csv" else pyarrow.parquet.read_table
    found = read(f"full{suffix}")
    assert found.column_names == table.column_names and found.schema.types == table.schema.types
    for name in table.column_names:
        pairs = [*zip(table[name].to_pylist(), found[name].to_pylist(), strict=True)]
        assert all(new is not None and old in (None, new) for old, new in pairs)
    assert set(found["colour"].to_pylist()) == {*TEXT}
    assert set(found["step"].to_pylist()) == {3, 4, 5, 6}


def test_holes_of_an_array_are_filled_and_nothing_else_changes(run, tmp_path):
    x = rng.normal(size=(60, 4, 2)) * 1e3
    x[..., 1] = rng.integers(5, 9, (60, 4))
    whole = x.copy()
    x[rng.random(x.shape) < 0.2] = np.nan
    path = saved(tmp_path, x)
    run("data=arrays", f"data.train={path}", *SHORT, *SMALL, "run_dir=c")
    run("task=impute", "checkpoint=c", "data.memory_gb=0", "impute.out=full.npy")
    found, known = np.load("full.npy"), ~np.isnan(x)
    assert found.dtype == x.dtype and np.array_equal(found[known], whole[known])
    assert np.isfinite(found).all() and {*found[..., 1].ravel()} == {5, 6, 7, 8}
    run("task=impute", "checkpoint=c", "impute.split=test", "impute.out=part.npy")
    (part,) = small(Arrays, train=path, num_workers=0).in_order("test")
    assert np.load("part.npy").shape == (6, 4, 2)
    some = known[part.numbers]
    assert np.array_equal(np.load("part.npy")[some], found[part.numbers][some])
    run("task=encode", "checkpoint=c", "encode.split=all", "encode.out=z.npy")
    run("task=decode", "checkpoint=c", "decode.file=z.npy", "decode.out=back.npy")
    assert {*np.load("back.npy")[..., 1].ravel()} <= {5, 6, 7, 8}


def test_a_release_alone_encodes_pictures_and_they_come_back_as_bytes(run):
    model = "checkpoint=gumbel_vae-digits"
    run("task=encode", model, "encode.what=codes", "encode.out=z.csv")
    run("task=decode", model, "decode.file=z.csv", "decode.out=x.npy")
    run("task=decode", model, "decode.file=z.csv", "decode.out=pictures")
    found = np.load("x.npy")
    assert found.dtype == np.uint8 and found.shape[1:] == (1, 8, 8)
    data, vae = Digits(binarize="threshold"), VAE.from_pretrained("gumbel_vae-digits")
    data.setup()
    x = torch.cat([batch.x for batch in data.test_dataloader()])
    expected = vae.reconstruct(x).mul(255).round().byte().numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1
    files = sorted(Path("pictures").iterdir())
    assert [f.name for f in files[:2]] == ["00000000.png", "00000001.png"]
    assert np.array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), found[:, 0])


def test_a_conditional_model_keeps_what_it_was_given(run):
    run(*SHORT, "data.batch_size=50", "model.condition=labels", "run_dir=d")
    run("task=encode", "checkpoint=d", "encode.what=codes", "encode.out=z.npy")
    assert set(np.load("z.y.npy")) == {*range(10)}
    run("task=decode", "checkpoint=d", "decode.file=z.npy", "decode.out=x.npy")
    data, vae = Digits(binarize="threshold"), VAE.from_pretrained("d")
    data.setup()
    batch = next(iter(data.test_dataloader()))
    expected = vae.reconstruct(batch.x, batch.y).mul(255).round().byte().numpy()
    found = np.load("x.npy")[: len(expected)].astype(int)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("condition", ["model.condition=labels", "model=semi_supervised_vae"])
def test_a_table_of_labels_keeps_them_and_has_samples_of_each(run, monkeypatch, condition):
    total, rng = 90, np.random.default_rng(1)
    x = rng.normal(size=(total, 3)) + np.arange(total)[:, None] % 3
    x[::7, 1] = np.nan
    names = [None if n % 4 == 0 and "semi" in condition else "abc"[n % 3] for n in range(total)]
    columns = {name: x[:, at] for at, name in enumerate("uvw")} | {"label": names}
    pyarrow.parquet.write_table(pyarrow.table(columns), "labelled.parquet")
    lines = ["data=arrays", "data.train=labelled.parquet", "data.labels=label", condition]
    run(*lines, *SHORT, *SMALL, "data.batch_size=20", "run_dir=t")
    run("task=encode", "checkpoint=t", "encode.split=all", "encode.out=z.csv")
    written = pyarrow.csv.read_csv("z.csv")["y"].to_pylist()
    assert all(name is None or "abc"[y] == name for name, y in zip(names, written, strict=True))
    given, impute = [], VAE.impute

    def noted(vae, x, samples, draw, y):
        given.extend(y.tolist())
        return impute(vae, x, samples, draw, y)

    monkeypatch.setattr(VAE, "impute", noted)
    run("task=impute", "checkpoint=t", "impute.out=full.parquet", "impute.samples=5")
    assert given == [-1 if name is None else "abc".index(name) for name in names]
    run("task=sample", "checkpoint=t", "sample.out=drawn.csv")
    assert pyarrow.csv.read_csv("drawn.csv")["label"].to_pylist() == [*"aaaaaaaabbbbbbbbcccccccc"]


# What fails


def contents():
    return {str(path) for path in Path().rglob("*") if path.name != ".lock"}


def interrupted(*_):
    raise KeyboardInterrupt


def terminated(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def broken(*_):
    raise ValueError("broken")


@pytest.mark.parametrize("how", [interrupted, terminated, broken])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_what_ends_in_the_middle_leaves_nothing(vectors, monkeypatch, how, suffix):
    encode, calls = conversion.encode, []

    def some(*arguments):
        calls.append(1)
        return how() if len(calls) == 3 else encode(*arguments)

    monkeypatch.setattr(row_files, "BUFFER", 1)
    monkeypatch.setattr(conversion, "encode", some)
    Path(f"z{suffix}").write_text("as before")
    before, handler = contents(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        vectors("task=encode", "checkpoint=a", "encode.split=all", f"encode.out=z{suffix}")
    assert caught.value.code in (2, 130, 143) and len(calls) == 3
    assert contents() == before and Path(f"z{suffix}").read_text() == "as before"
    assert signal.getsignal(signal.SIGTERM) == handler


LINES = {
    "task=encode": "task=encode needs a trained model",
    "task=encode checkpoint=a": "type encode.out=FILE.npy",
    "task=encode checkpoint=a encode.out=z.txt": "encode.out must be a file .npy .csv .parquet",
    "task=encode checkpoint=a encode.out=z": "encode.out must be a file .npy .csv .parquet",
    "task=encode checkpoint=a encode.out=z.npy encode.split=rest": "must be train or val or test",
    "task=encode checkpoint=a encode.out=z.npy encode.what=codes": "Gaussian has real ones",
    "task=encode checkpoint=a encode.out=z.npy data.test=no.npy": "there is no file no.npy",
    "task=encode checkpoint=a encode.out=x.npy/z.npy": "cannot save x.npy/z.npy",
    "task=encode checkpoint=a encode.out=x.npy data.test=x.npy": "x.npy is the data itself",
    "task=decode checkpoint=a decode.out=x.npy decode.file=x.npy": "is decode.file itself",
    "task=decode checkpoint=a decode.out=x.npy": "type decode.file=FILE",
    "task=decode checkpoint=a decode.out=x2.npy decode.file=z.npy": "there is no file z.npy",
    "task=decode checkpoint=a decode.out=x2.npy decode.file=t.csv": "must have the columns z0, z1",
    "task=decode checkpoint=a decode.out=x2.npy decode.file=x.npy": "the model has z of 20 numbers",
    "task=decode checkpoint=a decode.out=pictures decode.file=x.npy": "a folder is for grey or",
    "task=decode checkpoint=a decode.out=x2.npy decode.file=e.npy": "e.npy is empty",
    "task=decode checkpoint=gumbel_vae-digits decode.out=x.csv decode.file=x.npy": "for tables",
    "task=impute checkpoint=a impute.out=f.npy": "knows no missing values",
    "task=impute checkpoint=a": "type impute.out=FILE.npy",
    "task=impute checkpoint=a impute.out=f.npy impute.samples=0": "must be positive, got 0",
}


@pytest.mark.parametrize("line", LINES)
def test_a_mistake_is_one_line_and_leaves_nothing(vectors, capsys, line):
    Path("t.csv").write_text("a,b\n1,2\n")
    Path("e.npy").write_text("")
    before = contents()
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        vectors(*line.split())
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and LINES[line] in said, said
    assert contents() == before


IMPUTE = {
    "data.train=people.csv impute.out=people.csv": "is the data itself",
    "impute.out=full.npy": "impute.out must be .csv or .parquet",
}


@pytest.mark.parametrize("line", IMPUTE)
def test_what_cannot_be_filled_is_one_line(people, capsys, line):
    run, _ = people
    before = contents()
    with pytest.raises(SystemExit):
        run("task=impute", "checkpoint=b", *line.split())
    assert IMPUTE[line] in capsys.readouterr().err and contents() == before


def test_text_is_no_array(people, capsys):
    run, _ = people
    run("task=encode", "checkpoint=b", "encode.out=z.npy")
    with pytest.raises(SystemExit):
        run("task=decode", "checkpoint=b", "decode.file=z.npy", "decode.out=x.npy")
    assert "column 'colour' holds text: type decode.out=FILE.csv" in capsys.readouterr().err


def test_arrays_have_the_types_that_they_had():
    bits = [{"name": "0", "kind": "bernoulli", "values": [False, True]}]
    assert to_array(np.array([[0.0], [1.0]]), bits).tolist() == [[False], [True]]
    counts = [{"name": "0", "kind": "poisson"}, {"name": "1", "kind": "gaussian", "integer": True}]
    found = to_array(np.array([[2.2, -3.6]], np.float32), counts)
    assert found.dtype == np.int64 and found.tolist() == [[2, -4]]
    mixed = [*counts, {"name": "2", "kind": "gaussian"}]
    assert to_array(np.array([[2.2, -3.6, 0.5]], np.float32), mixed).dtype == np.float32
