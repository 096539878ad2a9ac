"""The evaluation as a task: task=evaluate of runs, of releases and of several at once."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_faults import SMOKE, start
from test_runs import HOLD
from test_train import records

from datamodules.digits import Digits
from datamodules.fashion_mnist import FashionMNIST
from datamodules.image_folder import ImageFolder
from tasks.evaluate import _write
from tasks.names import name_of
from tasks.same_data import differences, measured_on
from vae_lab import VAE, pretrained, zoo
from vae_lab.evaluation import features
from vae_lab.evaluation.samples import sample_quality
from vae_lab.likelihoods import ContinuousBernoulli
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.seeding import derive_seed, seed_generators
from vae_lab.storage.checkpoints import load_checkpoint, save_checkpoint
from vae_lab.storage.runs import read

SMALL = ["evaluate.samples=20", "evaluate.images=60", "evaluate.ais_images=3"]
SMALL += ["evaluate.ais_steps=3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an offline W&B, evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        start(patch, *SMOKE, "logger=wandb", "run_dir=x", "report=false", "model.latents=5")
        start(patch, "task=evaluate", "checkpoint=x", *SMALL)
    return folder


def test_a_run_is_evaluated_without_another_setting(runs):
    found = json.loads((runs / "x" / "evaluation.json").read_text())
    assert found["format"] == 1 and found["name"] == "x" and found["checkpoint"] == "x"
    assert found["command"].startswith("python train.py task=evaluate checkpoint=x")
    assert (found["data"], found["split"], found["images"]) == ("digits", "test", 60)
    assert found["commit"] and found["versions"]["torch"] == torch.__version__
    assert {
        *("elbo", "reconstruction", "kl", "log_likelihood", "bits_per_dimension", "train_elbo"),
        *("effective_samples", "dominated", "mutual_information", "total_correlation"),
        *(
            "marginal_kl",
            "prior_gap",
            "active_units",
            "code_perplexity",
            "code_usage",
            "relaxed_gap",
        ),
        *("fid", "precision", "recall", "linear_probe", "nearest_neighbours"),
    } <= found["metrics"].keys()
    assert found["metrics"]["elbo"].keys() == {"value", "standard_error", "unit", "note"}
    assert all(len(numbers) == 5 for numbers in found["per_latent"].values())
    assert "log likelihood" in (runs / "x" / "report.html").read_text()
    diagnosis = found["diagnosis"][0]
    assert diagnosis.keys() == {"name", "level", "because", "advice", "numbers"}


def test_another_checkpoint_of_it_has_a_place_of_its_own(runs, run, tmp_path):
    shutil.copytree(runs / "x", tmp_path / "x")
    before = [(tmp_path / "x" / name).read_bytes() for name in ("evaluation.json", "report.html")]
    last = Path("x", "checkpoints", "last.ckpt")
    checkpoint = load_checkpoint(last)  # of a run so short that it is the best one, too
    checkpoint["state_dict"]["vae.output_bias"] += 0.1
    save_checkpoint(checkpoint, last)
    run("task=evaluate", f"checkpoint={last}", *SMALL, "evaluate.parts=[bound]")
    after = [(tmp_path / "x" / name).read_bytes() for name in ("evaluation.json", "report.html")]
    assert before == after
    folder = tmp_path / "x" / "checkpoints" / "last"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["name"] == "x-last"
    assert found["sha256"] == pretrained.digest(VAE.from_pretrained(last))
    own = json.loads(before[0])
    assert own["sha256"] == pretrained.card("x")["sha256"] != found["sha256"]
    shown = (folder / "report.html").read_text()
    assert "x-last" in shown and f"{found['metrics']['elbo']['value']:.2f}" in shown
    shutil.copy(folder / "evaluation.json", "x")  # as if x had been trained further since
    assert read("x").evaluation == {} and read(folder, "x", sha256=found["sha256"]).evaluation
    assert not read(folder, "x", sha256=found["sha256"]).card.keys() & {"metrics", "step"}


def test_a_run_in_use_is_evaluated(runs, run, tmp_path):
    """Its W&B is left to the process that works there."""
    shutil.copytree(runs / "x", tmp_path / "x")
    (tmp_path / "x" / "evaluation.json").unlink()
    (tmp_path / "x" / ".lock").unlink()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    hold = [sys.executable, "-c", HOLD, str(tmp_path / "x")]
    with subprocess.Popen(hold, **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.warns(UserWarning, match="not sent to W&B: x is in use by process 4711"):
            run("task=evaluate", "checkpoint=x", *SMALL, "evaluate.parts=[bound]")
        other.kill()
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    assert found["metrics"].keys() >= {"elbo"} and not list((tmp_path / "x").glob("*.partial"))


def test_where_nothing_can_be_written_nothing_is_measured(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tasks.evaluate.evaluate", None)
    with pytest.raises(SystemExit):
        run("task=evaluate", "checkpoint=gaussian_vae-digits", "run_dir=file/x", *SMALL)
    assert "run_dir must be a folder to write in, got file/x" in capsys.readouterr().err


def test_samples_of_a_stochastic_run_are_compared_with_grey_images(run, tmp_path):
    line = ["checkpoint=gaussian_vae-digits", "data.binarize=stochastic", "run_dir=x", *SMALL]
    run("task=evaluate", *line, "evaluate.parts=[samples]", "report=false")
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())["metrics"]
    data = Digits().load()
    vae = VAE.from_pretrained("gaussian_vae-digits")
    seed_generators(derive_seed(0, "evaluate", "samples"))
    expected = sample_quality(vae, data.test[:60].float() / 255)
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)
    assert found["fid"]["note"] == "60 samples, features of the shipped network"


def test_inception_is_a_setting(run, tmp_path, monkeypatch):
    class Inception(torch.nn.Module):
        def forward(self, x):
            return x.float().flatten(1)

    monkeypatch.setattr(features, "_inception", Inception)
    line = ["task=evaluate", "checkpoint=gaussian_vae-digits", "run_dir=x", "report=false", *SMALL]
    run(*line, "evaluate.parts=[samples]", "evaluate.features=inception")
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())["metrics"]
    assert found["fid"]["note"] == "60 samples, features of inception"
    assert found["fid"]["value"] > 1e4  # of bytes: the network was asked


def test_its_wandb_has_the_numbers(runs):
    found = [
        record for path in runs.glob("x/wandb/offline-run-*/*.wandb") for record in records(path)
    ]
    ids = {r.run.run_id for r in found if r.HasField("run")}
    assert ids == {(runs / "x" / "wandb-id.txt").read_text().strip()}
    logged = {i.nested_key[0] for r in found for i in r.history.item}
    assert {"val/elbo", "evaluation/log_likelihood", "evaluation/fid"} <= logged


def test_several_models_are_one_table(run, runs, tmp_path, capsys):
    names = "gaussian_vae-digits,gumbel_vae-digits"
    run("task=evaluate", f"checkpoint={names}", "run_dir=y", *SMALL, "evaluate.parts=[bound,ais]")
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "log_likelihood" in line]
    assert sum(line.count("+-") == 2 for line in lines) == 1
    both = json.loads((tmp_path / "y" / "evaluations.json").read_text())
    assert list(both) == names.split(",")
    for name in both:
        alone = json.loads((tmp_path / "y" / name / "evaluation.json").read_text())
        assert alone == both[name] and alone["name"] == name_of(name)
    assert "ais_gain" in both["gaussian_vae-digits"]["metrics"]
    assert not {"split", "fid"} & both["gaussian_vae-digits"]["metrics"].keys()


def test_runs_of_one_name_are_two(run, tmp_path):
    for folder, model in (("a", "gumbel_vae-digits"), ("b", "gaussian_vae-digits")):
        shutil.copytree(zoo.FOLDER / model, tmp_path / folder / "x")
    run("task=evaluate", "checkpoint=a/x,b/x", "run_dir=y", *SMALL, "evaluate.parts=[bound]")
    both = json.loads((tmp_path / "y" / "evaluations.json").read_text())
    assert list(both) == ["a-x", "b-x"]
    for name, found in both.items():
        assert json.loads((tmp_path / "y" / name / "evaluation.json").read_text()) == found
        assert found["name"] == name
    assert both["a-x"]["sha256"] != both["b-x"]["sha256"]


def test_runs_of_other_data_are_named(run, tmp_path, capsys):
    zoo_model = zoo.FOLDER / "gumbel_vae-digits"
    for name, binarize in (("a", "threshold"), ("b", "none")):
        shutil.copytree(zoo_model, tmp_path / name)
        card = json.loads((tmp_path / name / "config.json").read_text())
        card["data"] |= {"binarize": binarize, "seed": len(name + binarize), "root": "/of/mine"}
        (tmp_path / name / "config.json").write_text(json.dumps(card))
    line = ["task=evaluate", "run_dir=y", *SMALL, "evaluate.parts=[bound]"]
    run(*line, "checkpoint=a,b")
    said = capsys.readouterr().out
    assert "not the same data: nats cannot be compared (binarize)" in said
    assert re.search(r"binarize +. +threshold +. +none", said)
    run(*line, "checkpoint=a,b", "data=digits", "data.binarize=stochastic")
    assert "not the same data" not in capsys.readouterr().out


def test_only_what_decides_the_images_makes_data_another():
    def measured(data, likelihood=None):
        vae = SimpleNamespace(likelihood=likelihood or Normal(0.1))
        return measured_on(SimpleNamespace(datamodule=data, vae=vae))

    digits, folder = measured(Digits()), measured(ImageFolder(root="a"))
    same = Digits(seed=1, split_seed=1, batch_size=10, val_size=100, flip=True, crop=0.8)
    assert measured(same) == digits
    assert measured(FashionMNIST(root="a")) == measured(FashionMNIST(download=False))
    for other in (
        measured(Digits(binarize="stochastic")),
        measured(Digits(), ContinuousBernoulli()),
        folder,
    ):
        assert dict(differences([digits, other]))
    for changed in ({"root": "b"}, {"split_seed": 1}, {"image_size": 32}, {"test_size": 9}):
        other = measured(ImageFolder(**{"root": "a"} | changed))
        assert [name for name, _ in differences([folder, other])] == [*changed]


def test_a_folder_is_the_same_however_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    vae = SimpleNamespace(likelihood=None)
    roots = ["pics", "./pics", str(tmp_path / "pics"), "not here"]
    data = [SimpleNamespace(datamodule=ImageFolder(root=root), vae=vae) for root in roots]
    first, *same, other = map(measured_on, data)
    assert same == [first, first] and other["root"] == "not here"


def test_two_processes_as_they_are_typed(run, tmp_path, monkeypatch):
    line = ["task=evaluate", "checkpoint=gaussian_vae-digits", *SMALL, "evaluate.parts=[bound]"]
    run(*line, "run_dir=one", "evaluate.images=150")
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp_fork"]
    prepared, setup = tmp_path / "prepared", Digits.setup

    def prepare(data):
        time.sleep(0.3)
        with prepared.open("a") as file:
            file.write(".")

    def set_up(data, stage):
        assert prepared.read_text() == "."  # once, and before anybody reads
        setup(data, stage)

    monkeypatch.setattr(Digits, "prepare_data", prepare)
    monkeypatch.setattr(Digits, "setup", set_up)
    run(*line, *two, "run_dir=two", "evaluate.images=150")
    one, two = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in ("one", "two"))
    assert one["metrics"] == two["metrics"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("checkpoint=gumbel_vae-digits,nothing", "no model at nothing"),
        ("checkpoint=gumbel_vae-digits data=mnist", "leave out data=..."),
        ("checkpoint=gumbel_vae-digits evaluate.samples=0", "evaluate.samples must be positive"),
        ("checkpoint=gumbel_vae-digits evaluate.features=vgg", "must be inception or null, got"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, capsys, line, message):
    with pytest.raises(SystemExit):
        run("task=evaluate", *line.split())
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_evaluation_without_a_metric_is_not_written(run, tmp_path, capsys):
    (tmp_path / "x").mkdir()
    file = tmp_path / "x" / "evaluation.json"
    file.write_text("of before")
    line = ["checkpoint=gumbel_vae-digits", "run_dir=x", "evaluate.parts=[ais]"]
    with pytest.raises(SystemExit):
        run("task=evaluate", *line, *SMALL)
    said = capsys.readouterr().err
    assert "ais measures nothing of gumbel_vae-digits: ais needs a Gaussian" in said
    assert file.read_text() == "of before"


def test_numbers_stand_in_rows(tmp_path):
    content = {"a": [0.5, -1e-05, 3], "b": [[1.0, 2.0], [3.0, 4.0]], "c": ["[\n1,", None], "d": []}
    _write(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert '"a": [ 0.5, -1e-05, 3 ]' in text and "    [ 1.0, 2.0 ],\n" in text
