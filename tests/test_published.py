"""The published tables: their rows are experiments, and are trained and measured by one command."""

import csv
import math
import subprocess

import pytest
import torch
from hydra.utils import get_class
from test_image_files import write_idx

from benchmarks import published
from commandline.check import Mistake, check
from vae_lab import VAE

TABLES = published.published()
ROWS = [(table, row) for table, about in TABLES.items() for row in about["rows"]]
TRAIN_IMAGES = {"MNIST": 60_000, "FashionMNIST": 60_000}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_an_experiment(table):
    folder = published.ROOT / "configs" / "experiment" / table
    files = {path.stem for path in folder.glob("*.yaml")}
    assert files == {*TABLES[table]["rows"], "_protocol"}


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_a_row_takes_the_papers_steps_and_no_weight_decays(table, row):
    (config,) = check([f"experiment={table}/{row}"])
    data = config.data
    images = TRAIN_IMAGES[get_class(data._target_).__name__] - data.val_size
    steps = config.trainer.max_epochs * math.ceil(images / data.batch_size)
    assert steps == TABLES[table]["steps"]
    assert config.model.optimizer.weight_decay == 0 and config.model.lr_decay == "none"


@pytest.mark.parametrize("table", TABLES)
def test_a_figure_says_whether_it_was_read(table):
    for row in TABLES[table]["rows"].values():
        assert not row or {*row} == {"value", "read"}
    assert {*TABLES[table]["measured"]} <= {*published.QUANTITIES}
    assert TABLES[table]["quantity"] in TABLES[table]["measured"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("experiment=bits/mnist_k2_disrm", "did you mean bits/mnist_k2_disarm; known: bits/..., f"),
        ("experiment=bits/_protocol", "unknown experiment 'bits/_protocol'; known: bits/..."),
        ("experiment=bits", "unknown experiment 'bits'"),
    ],
)
def test_a_row_that_is_none(typed, said):
    with pytest.raises(Mistake) as caught:
        check([typed])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bitz", "unknown table bitz; did you mean bits; known: reinmax, bits"),
        ("bits --rows mnist_k2_rodea", "unknown row mnist_k2_rodea; did you mean mnist_k2_rodeo"),
        ("reinmax --rows mnist_k2_rodeo", "unknown row mnist_k2_rodeo"),
        ("bits --share 0", "--share must be above 0 and at most 1, got 0"),
        ("bits --root FOLDER", "--root is DATA=FOLDER, as in mnist=FOLDER, got FOLDER"),
    ],
)
def test_what_was_mistyped_is_said(line, said, capsys):
    with pytest.raises(SystemExit):
        published.parsed(line.split())
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "epochs"),
    [
        ("", (160, 2000)),
        ("--share 0.1", (16, 200)),
        ("--quick", (16, 10)),
        ("--share 1e-9", (1, 1)),
    ],
)
def test_a_share_of_the_epochs(line, epochs):
    rows = ["8x4_reinmax", "mnist_k2_disarm"]
    options = published.parsed([*line.split(), "--seeds", "0", "1", "--rows", *rows])
    found = [*published.cases(TABLES, options)]
    assert [(c.row, c.seed, c.epochs) for c in found] == [
        (row, seed, count) for seed in (0, 1) for row, count in zip(rows, epochs, strict=True)
    ]


@pytest.fixture
def trains(tmp_path, monkeypatch, run):
    """The command, on 300 images; the runs that it starts are in this process."""
    write_idx(tmp_path / "images", train=300)
    monkeypatch.setattr(published, "RUNS", tmp_path / "runs")
    started = []

    def train_py(line):
        started.append(line)
        run(*line, "network.hidden=[8]", "model.latents=2")

    monkeypatch.setattr(published, "train_py", train_py)

    def trains(*line):
        root = f"mnist={tmp_path / 'images'}"
        options = published.parsed(["reinmax", "--rows", "8x4_reinmax", "--root", root, *line])
        options.out = tmp_path / "published.csv"
        tables = {"reinmax": TABLES["reinmax"]}
        left = [*published.cases(tables, options)]
        published.run(
            [c for c in left if c.key not in published.known(options.out)], tables, options
        )
        return [*csv.DictReader(options.out.read_text().splitlines())], started

    return trains


def test_a_row_is_trained_once_and_goes_on_with_more_epochs(trains, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "ThreadPoolExecutor", Here)
    trains("--share", "0.0125")
    ((row,), started) = trains("--share", "0.0125")
    assert len(started) == 1 and "resume=auto" in started[0]
    assert (row["epochs"], row["steps"]) == ("2", "6")
    rows, _ = trains("--share", "0.01875")
    assert [r["steps"] for r in rows] == ["6", "9"]
    assert float(rows[1]["seconds"]) >= float(row["seconds"])
    folder = tmp_path / "runs" / "reinmax" / "8x4_reinmax-0"
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert len(lines) > 1  # one run, and not two
    assert (folder / "commands.txt").read_text().count("train.py") == 2


class Here:
    """An executor that does at once what it is asked for: a signal's handler needs the main
    thread."""

    def __init__(self, jobs):
        assert jobs == 1

    __enter__ = __exit__ = lambda self, *_: self if not _ else None

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future


def test_the_last_weights_are_measured_on_all_images(trains, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "ThreadPoolExecutor", Here)
    ((row,), _) = trains("--share", "0.0125")
    folder = tmp_path / "runs" / "reinmax" / "8x4_reinmax-0"
    vae = VAE.from_pretrained(folder / "checkpoints" / "last.ckpt")
    from datamodules.mnist import MNIST

    data = MNIST(root=str(tmp_path / "images"), val_size=1)
    data.setup()
    x = data.train_values()
    assert len(x) == 299
    exact = torch.stack([vae.elbo(x, 100).elbo for _ in range(10)]).double().mean(0)
    error = float(row["train_elbo_error"])
    assert error == pytest.approx(exact.std().item() / math.sqrt(299), rel=0.2)
    assert float(row["train_elbo"]) == pytest.approx(exact.mean().item(), abs=error)
    assert float(row["test_elbo"]) != float(row["train_elbo"])
    vae.output_bias.data.zero_()  # a release of other weights, as the best in validation would be
    vae.save_pretrained(folder / "release")
    assert published.measure(folder, ["train_elbo"])["train_elbo"] == row["train_elbo"]


def test_a_run_that_fails_is_named(monkeypatch):
    def fails(line):
        raise subprocess.CalledProcessError(130, ["python", *line])

    monkeypatch.setattr(published, "train_py", fails)
    line = ["reinmax", "--rows", "8x4_reinmax", "--out", "/nowhere/x.csv"]
    monkeypatch.setattr("sys.argv", ["published.py", *line])
    said = "experiment=reinmax/8x4_reinmax ended with 130; the same command goes on with it"
    with pytest.raises(SystemExit, match=said):
        published.main()


@pytest.mark.parametrize(("row", "given"), [("mnist", True), ("fashion_mnist", False)])
def test_a_root_is_for_its_data_alone(row, given):
    case = published.Case("bits", f"{row}_k2_disarm", 0, 1)
    line = published.line_of(case, {"mnist": "FOLDER"})
    assert ("data.root=FOLDER" in line) == given and check(line)
