"""The published tables: their rows are experiments, and are trained and measured by one command."""

import csv
import math
import subprocess

import numpy as np
import pytest
import torch
from hydra.utils import get_class, instantiate
from test_image_files import small_cifar, write_idx  # noqa: F401 - a fixture

from benchmarks import published, published_page
from commandline.check import Mistake, check
from vae_lab import VAE
from vae_lab.evaluation.evidence import importance_weighted
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP

ALL = published.published()
TABLES = {name: about for name, about in ALL.items() if "command" not in about}
ROWS = [(table, row) for table, about in TABLES.items() for row in about["rows"]]
OF_FILES = [(t, r) for t, r in ROWS if "needs" in TABLES[t]["rows"][r] and t != "cifar10"]
TRAIN_IMAGES = {"MNIST": 60_000, "FashionMNIST": 60_000, "CIFAR10": 50_000}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_an_experiment(table):
    folder = published.ROOT / "configs" / "experiment" / table
    files = {path.stem for path in folder.glob("*.yaml")}
    assert files == {*(row for name, row in ROWS if name == table), "_protocol"}


@pytest.mark.parametrize(("table", "row"), sorted({*ROWS} - {*OF_FILES}))
def test_a_row_takes_the_papers_steps_and_no_weight_decays(table, row):
    (config,) = check([f"experiment={table}/{row}"])
    data, about = config.data, TABLES[table]
    images = TRAIN_IMAGES[get_class(data._target_).__name__] - data.val_size
    epoch = math.ceil(images / data.batch_size)
    assert config.trainer.max_epochs == about["epochs"]
    assert config.trainer.max_epochs * epoch == about["steps"]
    assert config.model.optimizer.weight_decay == 0 and config.model.lr_warmup_steps in (0, 2000)
    if "stages" in about:
        ends = instantiate(config.model.lr_decay).ends
        assert [*(end / epoch for end in ends), about["epochs"]] == about["stages"]
    else:
        assert config.model.lr_decay == "none"


def test_the_rates_of_the_iwae_are_those_of_its_authors():
    (config,) = check(["experiment=iwae/1_layer_k1"])
    decay, epoch = instantiate(config.model.lr_decay), 2980
    for i, end in enumerate(TABLES["iwae"]["stages"]):
        authors = 1e-4 * round(10 ** (1 - i / 7), 1)
        rate = config.model.optimizer.lr * decay.at(end * epoch - 1)
        assert rate == pytest.approx(authors, rel=0.02)


@pytest.mark.parametrize("table", TABLES)
def test_a_figure_says_whether_it_was_read(table):
    for row in TABLES[table]["rows"].values():
        assert not row or {*row} - {"needs", "steps"} == {"value", "read"}
    assert {*TABLES[table]["measured"]} <= {*published.QUANTITIES}
    assert TABLES[table]["quantity"] in TABLES[table]["measured"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("experiment=bits/mnist_k2_disrm", "did you mean bits/mnist_k2_disarm; known: bits/..., c"),
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
        ("codebooks", "another command makes the table codebooks: python benchmarks/codebooks.py"),
        ("--rows caltech_vamp", "caltech_vamp cannot be run: it needs --root caltech=FOLDER"),
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
        ("", (160, 2000, 3280)),
        ("--share 0.1", (16, 200, 121)),
        ("--share 0.12", (19, 240, 364)),
        ("--quick", (8, 5, 4)),
        ("--share 1e-9", (1, 1, 1)),
    ],
)
def test_a_share_of_the_epochs(line, epochs):
    rows = ["8x4_reinmax", "mnist_k2_disarm", "1_layer_k5"]
    options = published.parsed([*line.split(), "--seeds", "0", "1", "--rows", *rows])
    found = [*published.cases(TABLES, options)]
    assert [(c.row, c.seed, c.epochs) for c in found] == [
        (row, seed, count) for seed in (0, 1) for row, count in zip(rows, epochs, strict=True)
    ]


def test_rows_of_data_that_nobody_brings_along_are_run_where_it_is():
    def rows(*line):
        options = published.parsed(["vampprior", *line])
        return [c.row for c in published.cases({"vampprior": TABLES["vampprior"]}, options)]

    assert rows() == ["mnist_standard", "mnist_vamp"]
    given = rows("--root", "omniglot=FOLDER")
    assert given == ["mnist_standard", "mnist_vamp", "omniglot_standard", "omniglot_vamp"]


SMALL = ["network.hidden=[8]", "model.latents=2"]


@pytest.fixture
def trains(tmp_path, monkeypatch, run):
    """The command, on 300 images; the runs that it starts are in this process."""
    write_idx(tmp_path / "images", train=300)
    monkeypatch.setattr(published, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(published, "ThreadPoolExecutor", Here)
    started = []

    def trains(*line, table="reinmax", row="8x4_reinmax", root="", small=SMALL, **changes):
        def train_py(line):
            started.append(line)
            run(*line, *small)

        monkeypatch.setattr(published, "train_py", train_py)
        root = root or f"mnist={tmp_path / 'images'}"
        options = published.parsed([table, "--rows", row, "--root", root, *line])
        options.out = tmp_path / "published.csv"
        tables = {table: TABLES[table] | changes}
        published.run(published.remaining(tables, options), tables, options)
        return [*csv.DictReader(options.out.read_text().splitlines())], started

    return trains


def test_a_row_is_trained_once_and_goes_on_with_more_epochs(trains, tmp_path, capsys):
    trains("--share", "0.0125")
    ((row,), started) = trains("--share", "0.0125")
    assert len(started) == 1 and "resume=auto" in started[0]
    assert (row["epochs"], row["steps"]) == ("2", "6")
    rows, _ = trains("--share", "0.01875")
    assert [r["steps"] for r in rows] == ["6", "9"]
    assert float(rows[1]["seconds"]) >= float(row["seconds"])
    assert trains("--share", "0.00625") == (rows, started)  # from more epochs none goes back
    (tmp_path / "published.csv").write_text("table,row,seed,epochs\n")  # as if it were broken off
    assert trains("--share", "0.00625") == ([], started)
    assert f"8x4_reinmax 0 1 left out: {rows[-1]['epochs']} epochs" in capsys.readouterr().out
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


def test_the_last_weights_are_measured_on_all_images(trains, tmp_path):
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
    again = {"measured": ["train_elbo"]}
    assert published.measure(folder, again)["train_elbo"] == row["train_elbo"]
    best = folder / "checkpoints" / "best.ckpt"
    best.unlink()
    with pytest.raises(FileNotFoundError, match="best.ckpt"):
        published.measure(folder, again | {"weights": "best"})


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
    line = published.line_of(case, {}, {"mnist": "FOLDER"})
    assert ("data.root=FOLDER" in line) == given and check(line)


def write_files(folder):
    """Images as they have to be there: bytes, black and white."""
    for part, count in {"train": 120, "val": 20, "test": 20}.items():
        images = np.random.default_rng(count).integers(0, 2, (count, 1, 28, 28)) * 255
        np.save(folder / f"{part}.npy", images.astype(np.uint8))


@pytest.mark.parametrize(("table", "row"), OF_FILES)
def test_rows_of_files_are_trained_and_measured(trains, tmp_path, table, row):
    write_files(tmp_path / "images")
    root = f"{TABLES[table]['rows'][row]['needs']}={tmp_path / 'images'}"
    small = [*SMALL, "prior.pseudo_inputs=5"] if row.endswith("vamp") else SMALL
    bound = {"samples": 3, "images": 20}
    settings = {"table": table, "row": row, "root": root, "small": small, "bound": bound}
    ((found,), _) = trains("--share", "0.0005", **settings)
    assert found["steps"] == "2" and float(found["test_bound"]) > float(found["test_elbo"])


@pytest.mark.usefixtures("small_cifar")
def test_rows_of_cifar_are_trained_and_measured(trains, tmp_path):
    small = ["network.channels=[4,4]", "data.val_size=4", "data.batch_size=8", "model.latents=1"]
    settings = {"table": "cifar10", "root": f"cifar10={tmp_path}", "small": small}
    for row in TABLES["cifar10"]["rows"]:
        found, _ = trains("--share", "0.001", row=row, **settings)
        assert found[-1]["steps"] == "2" and math.isfinite(float(found[-1]["test_elbo"]))


def test_the_bound_of_all_images_takes_a_part_of_them():
    torch.manual_seed(0)
    vae = VAE((1, 4, 4), MLP((8,)), Gaussian(2), Bernoulli())
    with torch.no_grad():
        vae.output_bias.fill_(2.0)  # images differ by how many pixels are white, and little by z
        for weight in vae.decoder.parameters():
            weight.mul_(0.5)
    x = (torch.rand(400, 1, 4, 4) > 0.5).float()
    each = published.elbo(vae, x)
    mean, error = published.bound(each, vae, x, samples=50, images=200)
    exact = importance_weighted(vae, x, 50).bound.double()
    assert exact.mean() > each.mean() + 0.01
    assert mean == pytest.approx(exact.mean().item(), abs=0.2 * error)
    of_all, of_gain = exact.var() / 400, (exact - each).var() * (1 / 200 - 1 / 400)
    assert error == pytest.approx((of_all + of_gain).sqrt().item(), rel=0.05)


# The page


LINE = {"table": "bits", "row": "mnist_k2_disarm", "seed": "0", "epochs": "20", "steps": "10000"}
LINE |= {"seconds": "120", "train_elbo": "-120", "train_elbo_error": "0.5"}
LINE |= {"test_elbo": "-121", "test_elbo_error": "0.6"}


def cells(*lines, row="mnist_k2_disarm", table="bits"):
    return published_page.cells(row, TABLES[table], [LINE | line for line in lines])


def test_the_page_is_what_the_files_give():
    made = published_page.page(ALL, published.HERE / "published.csv")
    assert published_page.PAGE.read_text() == made, "type python benchmarks/published.py docs"


def test_runs_of_all_lengths_are_shown_the_longest_first():
    name, paper = "`mnist_k2_disarm`", "-102.75 (m)"
    longer = {"epochs": "200", "steps": "100000", "train_elbo": "-110"}
    shown, shorter = cells({}, longer)
    assert shown[:4] == [name, "-110.00 ± 0.50", paper, "100,000 of 1,000,000"]
    assert shown[4:] == ["2", "-121.00 ± 0.60"]
    assert shorter[:4] == [name, "-120.00 ± 0.50", paper, "10,000 of 1,000,000"]
    assert cells({"epochs": "2000", "steps": "1000000"})[0][3] == "1,000,000"
    (seeds,) = cells({}, {"seed": "1", "train_elbo": "-121"}, {"seed": "2", "train_elbo": "-122"})
    assert seeds[1] == "-121.00 ± 0.58 (3 seeds)"


def test_rows_without_a_run_say_so(tmp_path):
    assert cells()[0][1] == "not run"
    text = published_page.page(ALL, tmp_path / "none.csv")
    assert "This table was not run." in text and "± 0.1" not in text
    for about in TABLES.values():
        assert published_page.filled(about["about"]) in text


def test_the_codebooks_are_those_of_their_benchmark(tmp_path):
    row = "name,steps,seed,mse,elbo,usage,perplexity,seconds\nVQ,3000,0,0.01,-99.5,1.0,300,60\n"
    row += "".join(f"its VQ,3000,{seed},0.01,nan,1.0,300,60\n" for seed in (0, 1))
    (tmp_path / "codebooks_mnist.csv").write_text(row)
    text = published_page.page(ALL, tmp_path / "published.csv")
    found = text.partition("\nMNIST:\n")[2].partition("\nFashion-MNIST:\n")
    assert "| VQ | 0.01000 | -99.50 | 100.0% | 300 | 60 |" in found[0]
    spread = "| 0.01000 ± 0.00000 |  | 100.0% ± 0.0% | 300 ± 0 | 60 ± 0 |"
    assert f"| its VQ {spread}" in found[0]
    assert "This table was not run." in found[2] and "ms a step" not in text


def test_a_csv_with_fewer_columns_gets_the_others(tmp_path):
    out = tmp_path / "published.csv"
    names = [name for name in published.COLUMNS if name in LINE]
    out.write_text(",".join(names) + "\n" + ",".join(LINE[name] for name in names) + "\n")
    for seed in ("1", "2"):
        published.append(LINE | {"seed": seed}, out)
    lines = published_page.read(out)
    assert [line["seed"] for line in lines] == ["0", "1", "2"]
    assert all({*line} == {*published.COLUMNS} for line in lines)
    assert all(line["test_elbo"] == "-121" and line["test_bound"] == "" for line in lines)
