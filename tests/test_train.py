"""Runs as a user starts them: from another folder, with train.py."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import train
from datamodules import streaming
from tasks import build, compare, fit
from tasks.build import commit
from tasks.compare import _curve
from tasks.table import TASKS
from vae_lab import VAE, export, pictures
from vae_lab.drawing import gallery
from vae_lab.storage.runs import commands_of

ROOT = Path(train.__file__).parent
CSV = ["experiment=smoke", "network=linear"]
METRICS = {
    *(f"train/{name}" for name in ("elbo", "reconstruction", "kl", "temperature", "beta")),
    *(f"val/{name}" for name in ("elbo", "reconstruction", "kl", "active_units")),
    *("val/code_perplexity", "test/elbo", "lr", "perf/images_per_second", "step", "epoch"),
}
SWALLOWED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    raise ImportError
"""


def python(folder, *arguments, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=inherited | {"NETRC": str(folder / "no-credentials")} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(folder, *without):
    with (folder / "metrics.csv").open(newline="") as file:
        table = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if not k.startswith(without)} for row in table]


def weights(folder):
    return load_file(folder / "release" / "model.safetensors")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


def records(path):
    """The records of a .wandb file: a LevelDB log, of which blocks and heads are left out here."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no room for a head
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, last; 2 and 3 go on
            yield Record.FromString(whole)
            whole = b""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with the default logger and without credentials, then resumed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    line = [str(ROOT / "train.py"), "experiment=smoke", "logger=wandb", "run_dir=x"]
    elsewhere = {"WANDB_DATA_DIR": str(tmp_path_factory.mktemp("staged"))}
    first = python(folder, *line, **elsewhere)
    assert first.returncode == 0, first.stderr
    listing = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    again = "resume=x", "trainer.max_epochs=4"
    resumed = python(folder, str(ROOT / "train.py"), *again, **elsewhere)
    assert resumed.returncode == 0, resumed.stderr
    return folder, first, listing


def test_files_of_a_run(finished):
    folder, first, listing = finished
    expected = {
        *("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        *("release/model.safetensors", "release/config.json", "images/samples.png"),
        *("images/reconstructions.png", "images/interpolation.png"),
    }
    assert {f"x/{name}" for name in expected} <= listing
    assert all(name.startswith("x/") for name in listing)  # and nothing beside it
    assert OmegaConf.load(folder / "x" / "config.yaml").data.seed == 0  # resolved
    release = json.loads((folder / "x" / "release" / "config.json").read_text())
    assert release["metrics"]["test/elbo"] < 0
    threads = OmegaConf.load(folder / "x" / "config.yaml").threads
    assert release["command"] == (
        f"python train.py experiment=smoke logger=wandb threads={threads} run_dir=runs/again"
        " && python train.py resume=runs/again trainer.max_epochs=4"
    )
    assert release["data"]["class"] == "Digits" and release["data"]["binarize"] == "threshold"
    assert first.stderr == ""
    assert first.stdout.count("W&B: no credentials found, logging offline") == 1


def test_metrics_of_a_run(finished):
    found = rows(finished[0] / "x")
    assert METRICS <= {name for row in found for name in row}
    assert [int(row["step"]) for row in found] == [2, 4, 6, 8, 10, 12, 14, 16]


def test_run_is_read_by_another_process(finished):
    run = finished[0] / "x"
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["config"]["model"]["_target_"] == "models.GumbelVAE"
    assert VAE.from_pretrained(run).sample(2).shape == (2, 1, 8, 8)


def test_wandb_run(finished):
    files = sorted(finished[0].glob("x/wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    for path in files:
        found = list(records(path))
        run = next(r.run for r in found if r.HasField("run"))
        assert run.run_id == (finished[0] / "x" / "wandb-id.txt").read_text().strip()
        items = [i for r in found for i in [*r.run.config.update, *r.config.update]]
        settings = {i.key: json.loads(i.value_json) for i in items}
        assert settings["model"]["_target_"] == "models.GumbelVAE"
        assert settings["data"]["seed"] == 0
        assert settings["commit"]
        logged = {i.nested_key[0] for r in found for i in r.history.item}
        assert {"val/elbo", "train/temperature", "images/samples"} <= logged
        artifact = next(r.artifact for r in found if r.HasField("artifact"))
        assert json.loads(artifact.metadata)["metrics"]["test/elbo"] < 0
        assert {e.path for e in artifact.manifest.contents} == {"config.json", "model.safetensors"}
        assert next(r.exit.exit_code for r in found if r.HasField("exit")) == 0
        assert len(list(path.parent.glob("files/media/images/images/*.png"))) == 3


def test_mistake(tmp_path):
    ended = python(tmp_path, str(ROOT / "train.py"), "--model=gumbel_vae")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "train.py: settings have no dashes: type model=gumbel_vae instead of --model=gumbel_vae\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_is_made_again_by_the_command_on_its_card(run, tmp_path):
    small = ["experiment=smoke", "network=linear", "report=false"]
    run(*small, "seed=3", "+model.optimizer.amsgrad=true", "run_dir=x")
    run("resume=x", "trainer.max_epochs=3")
    run("resume=x", "exact=false", "trainer.max_epochs=4", "model.optimizer.lr=0.1")
    lines = release(tmp_path / "x")["command"].split(" && ")
    assert (tmp_path / "x" / "commands.txt").read_text().splitlines() == lines
    type_again(run, lines)
    again = tmp_path / "runs" / "again"
    assert release(again)["sha256"] == release(tmp_path / "x")["sha256"]


def type_again(run, lines):
    for line in lines:
        run(*shlex.split(line.removeprefix("python train.py ")))


def test_the_commands_of_a_run_can_be_typed_as_they_stand(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pictures = tmp_path / "home" / "my pictures"
    pictures.mkdir(parents=True)
    for number in range(120):
        Image.new("L", (8, 8), number).save(pictures / f"{number}.png")
    small = ["experiment=smoke", "network=linear", "report=false", "data.binarize=threshold"]
    folder = ["data=image_folder", f"data.root={pictures}", "data.image_size=8"]
    folder.append("data.batch_size=10")
    run(*small, *folder, "run_dir=x")
    [line] = (tmp_path / "x" / "commands.txt").read_text().splitlines()
    assert line == release(tmp_path / "x")["command"] and str(tmp_path) not in line
    type_again(run, [line])
    [made] = (tmp_path / "runs").iterdir()
    assert release(made)["sha256"] == release(tmp_path / "x")["sha256"]


def test_a_run_that_began_as_anothers_checkpoint_says_so(monkeypatch):
    typed = ["resume=a.ckpt", "run_dir=b", "trainer.max_epochs=9"]
    made = SimpleNamespace(overrides=SimpleNamespace(task=typed))
    monkeypatch.setattr(HydraConfig, "get", lambda: made)
    line = "python train.py resume={} trainer.max_epochs=9"
    assert build.command("a.ckpt") == f"{line.format('a.ckpt')} run_dir=runs/again"
    assert build.command("a/checkpoints/last.ckpt") == line.format("runs/again")


@pytest.mark.parametrize("typed", [[], ["threads=3"], ["threads=null"]])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_command_names_the_number_of_threads_once(monkeypatch, typed, resume):
    made = SimpleNamespace(overrides=SimpleNamespace(task=[*typed, "seed=1"]))
    monkeypatch.setattr(HydraConfig, "get", lambda: made)
    words = shlex.split(build.command(resume, 3))
    assert sorted(words) == ["python", "seed=1", "threads=3", "train.py"]
    assert build.command(resume) == shlex.join(["python", "train.py", *typed, "seed=1"])


def test_a_run_in_any_number_of_threads_is_made_again(run, tmp_path):
    run(*CSV, "run_dir=x")
    [line] = commands_of(tmp_path / "x")
    assert f"threads={OmegaConf.load(tmp_path / 'x' / 'config.yaml').threads}" in line.split()


def test_commands_of_an_older_version_are_completed(tmp_path):
    old = "python train.py seed=1\npython train.py resume=RUN trainer.max_epochs=4\n"
    (tmp_path / "commands.txt").write_text(old)
    assert commands_of(tmp_path) == [
        "python train.py seed=1 run_dir=runs/again",
        "python train.py resume=runs/again trainer.max_epochs=4",
    ]


def release(folder):
    return json.loads((folder / "release" / "config.json").read_text())


def test_without_git_there_is_no_commit(monkeypatch):
    assert commit()
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit() is None


def test_interrupted_while_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text(SWALLOWED)
    ended = python(tmp_path, str(ROOT / "train.py"), PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (130, "train.py: interrupted\n")


def test_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    line = [*CSV, "model=reinforce_vae", "ema=0.5"]
    line.append("model.lr_decay=none")  # a decay knows the run's length
    run(*line, "run_dir=whole", "trainer.max_epochs=4")
    run(*line, "run_dir=x")
    run("resume=x", "trainer.max_epochs=4")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "x"))
    # At the end of the first half there was also a test, in the next epoch.
    without = ("perf/", "test/", "epoch")
    assert rows(tmp_path / "whole", *without) == rows(tmp_path / "x", *without)


def test_resuming_another_model_changes_nothing(run, tmp_path, capsys):
    run(*CSV, "run_dir=x")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for line in (["resume=x", "model.latents=3"], [*CSV, "run_dir=x"]):
        with pytest.raises(SystemExit):
            run(*line)
    errors = capsys.readouterr().err.splitlines()
    assert "last.ckpt holds another model" in errors[0]
    assert errors[1:] == ["train.py: x holds a run already: type resume=x or another run_dir"]
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_tasks_need_no_other_setting(run, tmp_path, capsys):
    run(*CSV, "run_dir=x", "seed=3")
    trained = capsys.readouterr().out
    run("task=test", "checkpoint=x")
    tested = capsys.readouterr().out
    assert [li for li in tested.splitlines() if "test/" in li] == [
        li for li in trained.splitlines() if "test/" in li
    ]
    run("task=sample", "checkpoint=x")
    assert (tmp_path / "x" / "samples.png").is_file()


def test_parts_of_another_run(run, tmp_path, capsys):
    run("experiment=smoke", "run_dir=x")
    capsys.readouterr()
    line = ["init.encoder=x", "init.freeze=[encoder]", "model=gaussian_vae", "run_dir=y"]
    run(*line, "experiment=smoke")
    assert "encoder from x: taken: encoder." in capsys.readouterr().out
    x, y = weights(tmp_path / "x"), weights(tmp_path / "y")
    taken = [name for name in x if name.startswith("encoder.")]
    assert taken
    assert all(torch.equal(x[name], y[name]) for name in taken)
    assert not torch.equal(x["output_bias"], y["output_bias"])


def test_a_frozen_posterior_of_another_size_of_picture(run, tmp_path, capsys):
    line = ["experiment=smoke", "network=grid", "network.channels=[4]", "model=gaussian_vae"]
    line.append("model.latents=2")
    run(*line, "run_dir=x")
    capsys.readouterr()
    parts = ["init.encoder=x", "init.posterior=x", "init.freeze=[encoder,posterior]"]
    other = ["data=sprites", "data.image_size=20", "data.rotations=4", "data.positions=4"]
    run(*line, *other, *parts, "network.checkpointing=true", "run_dir=y")
    assert "posterior from x: taken: head.weight, head.bias" in capsys.readouterr().out
    x, y = weights(tmp_path / "x"), weights(tmp_path / "y")
    same = {name for name in x if torch.equal(x[name], y[name])}
    assert {name for name in x if name.startswith(("encoder.", "head.", "latent."))} <= same
    assert "output_bias" not in same


def test_jobs_of_a_sweep_are_runs_of_their_own(run, tmp_path):
    run("-m", *CSV, "seed=1,2", "run_dir=x")
    configs = [OmegaConf.load(tmp_path / "x" / n / "config.yaml") for n in "01"]
    assert [c.seed for c in configs] == [1, 2]
    assert not same(weights(tmp_path / "x" / "0"), weights(tmp_path / "x" / "1"))


def test_a_failed_job_stops_no_other(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run("-m", *CSV, "model.optimizer.lr=1e18,0.001", "model.lr_warmup_steps=0", "run_dir=x")
    assert caught.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("train.py: ") and "train/objective is nan" in first
    assert second.startswith("Error executing job with overrides: ") and "lr=1e+18" in second
    assert (tmp_path / "x" / "1" / "release").is_dir()


def test_a_signal_stops_all_jobs(run, tmp_path, monkeypatch):
    begun = []

    def fit(config):
        begun.append(config.seed)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setitem(TASKS, "fit", fit)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    with pytest.raises(SystemExit) as caught:
        run("-m", *CSV, "seed=1,2")
    assert (caught.value.code, begun) == (130, [1])


def test_a_folder_is_looked_at_again_before_it_is_written_in(run, tmp_path, monkeypatch, capsys):
    """Another process has trained there while this one read its data."""
    check = fit._check_data

    def slow(*arguments):
        check(*arguments)
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "metrics.csv").write_text("its own")

    monkeypatch.setattr(fit, "_check_data", slow)
    with pytest.raises(SystemExit):
        run(*CSV, "run_dir=x")
    assert "x holds a run already: type resume=x or another" in capsys.readouterr().err
    assert (tmp_path / "x" / "metrics.csv").read_text() == "its own"


def test_a_run_that_never_began_leaves_no_folder(run, tmp_path):
    with pytest.raises(SystemExit):
        run(*CSV, "data.batch_size=9999")
    assert not [*tmp_path.iterdir()]


def test_what_was_asked_of_a_process_stays_as_it_was(run, tmp_path, monkeypatch, capsys):
    line = "seed='${oc.decode:${oc.env:SEED}}'"
    monkeypatch.setenv("SEED", "3")
    run(*CSV, line, "run_dir=x")
    saved = torch.load(tmp_path / "x" / "checkpoints" / "last.ckpt", weights_only=True)["config"]
    assert saved["seed"] == 3 and saved["data"]["seed"] == "${seed}"
    monkeypatch.delenv("SEED")
    run("task=test", "checkpoint=x")
    monkeypatch.setenv("SEED", "4")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("resume=x", line)
    assert "cannot go on exactly with other settings: seed 3 -> 4" in capsys.readouterr().err


def test_paths_may_begin_at_home(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    run(*CSV, "run_dir=~/x")
    run("resume=~/x", "trainer.max_epochs=3")
    run("task=sample", "checkpoint='~/x'")
    run("task=evaluate", "checkpoint=~/x, ~/x/release", "evaluate.parts=[latents]", "report=false")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_is_said_to_type_can_be_typed(run, capsys):
    run(*CSV, "run_dir='two words, lr=1'")
    [resume] = [line for line in capsys.readouterr().out.splitlines() if "resume=" in line]
    run(*shlex.split(resume.replace("max_epochs=N", "max_epochs=3"))[2:])
    assert "resuming two words, lr=1 at step 8" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["gaussian_vae", "vq_vae", "fsq_vae"])
def test_averaged_weights_are_tested_and_released(run, tmp_path, model):
    run(*CSV, "run_dir=x", "ema=0.5", f"model={model}")
    best = torch.load(tmp_path / "x" / "checkpoints" / "best.ckpt", weights_only=True)
    averaged, latest = best["state_dict"], best["current_model_state"]
    learned = {"vq_vae": "latent.book.codes", "fsq_vae": "latent.whitening.loc"}
    for name in ("head.weight", learned.get(model, "output_bias")):
        assert not torch.equal(latest[f"vae.{name}"], averaged[f"vae.{name}"])
    released = weights(tmp_path / "x")
    assert same(released, {name: averaged[f"vae.{name}"] for name in released})


@pytest.mark.parametrize(
    "line",
    [
        "early_stopping=1 trainer.max_epochs=9 model.optimizer.lr=0",
        "trainer.precision=bf16-mixed trainer.gradient_clip_val=1",
        "trainer.accumulate_grad_batches=2 trainer.gradient_clip_val=1",
        "trainer.max_steps=3",
        "trainer.check_val_every_n_epoch=5",
        "logger=tensorboard",
        "network=grid ema=0.5 trainer.precision=bf16-mixed channels_last=true",
    ],
)
def test_setting(run, tmp_path, line):
    run(*CSV[: 1 if "network=" in line else None], "run_dir=x", *line.split())
    assert VAE.from_pretrained(tmp_path / "x").shape == (1, 8, 8)
    assert int(rows(tmp_path / "x")[-1]["epoch"]) < 5
    assert ("tensorboard" in line) == (tmp_path / "x" / "tensorboard").is_dir()


def test_weights_that_went_bad_are_not_kept(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*CSV, "run_dir=x", "model.optimizer.lr=1e18", "model.lr_warmup_steps=0")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "train/objective is nan" in said
    assert "the weights, themselves no longer finite, are in x/debug.ckpt" in said
    assert not (tmp_path / "x" / "checkpoints").exists()
    assert torch.load(tmp_path / "x" / "debug.ckpt", weights_only=True)["config"]["seed"] == 0


PROBE = ["callbacks=gradient_probe", "callbacks.gradient_probe.every_n_steps=4"]
PROBE += ["callbacks.gradient_probe.repeats=3", "callbacks.gradient_probe.reference_repeats=3"]


def test_the_probe_sees_the_gradient_and_changes_nothing(run, tmp_path):
    run(*CSV, "run_dir=plain")
    run(*CSV, *PROBE, "run_dir=probed")
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "probed"))
    probed = [row for row in rows(tmp_path / "probed") if "gradient/variance" in row]
    assert [int(row["step"]) for row in probed] == [4, 8]
    assert (tmp_path / "probed" / "images" / "gradients.png").stat().st_size > 5_000


def test_estimators_of_a_latent_that_is_chosen_are_compared(run, tmp_path):
    asked = ["compare.repeats=2", "compare.reference_repeats=2", "compare.images=4"]
    train = ["compare.train_epochs=1", "compare.estimators=[disarm]"]
    bits = ["model=gaussian_vae", "latent=bernoulli", "latent.latents=2", "estimator=arm"]
    run(*CSV, "task=compare", "run_dir=c", *bits, *asked, *train)
    assert VAE.from_pretrained(tmp_path / "c" / "runs" / "disarm-0").latent.kind == "bits"


def test_the_variance_while_each_estimator_trains_is_drawn(run, tmp_path, capsys):
    asked = ["estimators=[straight_through,score_function]", "train_epochs=1", "repeats=2"]
    asked += ["reference_repeats=2", "images=4"]
    probe = ["every_n_steps=2", "images=4", "repeats=3", "reference_repeats=2"]
    line = ["run_dir=c", "callbacks=gradient_probe", *(f"compare.{a}" for a in asked)]
    run(*CSV, "task=compare", *line, *(f"callbacks.gradient_probe.{setting}" for setting in probe))
    assert "compare.csv, compare.png, variance.png" in capsys.readouterr().out
    probed = rows(tmp_path / "c" / "runs" / "score_function-0")
    measured = [r for r in probed if r.get("gradient/variance")]
    assert [point["step"] for point in compare._variances(probed)] == [2, 4]
    assert compare._variances(probed)[0]["variance"] == float(measured[0]["gradient/variance"])
    assert (tmp_path / "c" / "variance.png").stat().st_size > 5_000


def test_estimators_are_compared(run, tmp_path, capsys, monkeypatch):
    asked = ["estimators=[straight_through,score_function]", "train_epochs=1", "repeats=5"]
    asked += ["seeds=[0,1]", "evaluations=3"]
    between = ["trainer.val_check_interval=3", "trainer.log_every_n_steps=2"]
    size = ["model.latents=2", "model.categories=3", "run_dir=c"]
    run(*CSV, "task=compare", *size, *between, *(f"compare.{line}" for line in asked))
    said = capsys.readouterr().out
    assert "against the exact gradient" in said
    with (tmp_path / "c" / "compare.csv").open(newline="") as file:
        table = {row["estimator"]: row for row in csv.DictReader(file)}
    assert {name: float(row["evaluations"]) for name, row in table.items()} == {
        "straight_through": 3.0,
        "score_function": 3.0,
    }
    for name, row in table.items():
        elbos = [release(tmp_path / "c" / "runs" / f"{name}-{s}")["metrics"] for s in (0, 1)]
        elbos = [metrics["test/elbo"] for metrics in elbos]
        found = [float(row[key]) for key in ("lowest", "highest", "test_elbo")]
        assert found == pytest.approx([min(elbos), max(elbos), sum(elbos) / 2])
        assert f"{found[-1]:.2f}" in said
        trained = OmegaConf.load(tmp_path / "c" / "runs" / f"{name}-1" / "config.yaml")
        assert trained.estimator.num_samples == 3
    assert (tmp_path / "c" / "compare.png").exists()
    assert not (tmp_path / "c" / "variance.png").exists()
    assert (tmp_path / "c" / "runs" / "score_function-0" / "release").is_dir()
    monkeypatch.setattr(compare, "reference", None)  # it is refused before the work
    again = ["compare.seeds=[2,1]", "compare.estimators=[score_function]", "compare.train_epochs=1"]
    with pytest.raises(SystemExit):
        run(*CSV, "task=compare", *size, *again)
    said = capsys.readouterr().err
    assert said == ("train.py: c/runs/score_function-1 holds a run already: type another run_dir\n")


@pytest.mark.parametrize("images", [5, 20])
def test_a_comparison_has_as_many_images_as_are_asked_for(run, monkeypatch, images):
    seen = []

    def reference(vae, objective, x, *_):
        seen.append(len(x))
        raise ValueError("this is enough")

    monkeypatch.setattr(compare, "reference", reference)
    with pytest.raises(SystemExit):
        run(*CSV, "task=compare", "run_dir=c", "data.batch_size=8", f"compare.images={images}")
    assert seen == [images]


def test_what_was_measured_is_kept_if_the_training_fails(run, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_train", None)
    few = ["estimators=[straight_through]", "train_epochs=1", "repeats=2", "reference_repeats=2"]
    with pytest.raises((TypeError, SystemExit)):
        run(*CSV, "task=compare", "run_dir=c", *(f"compare.{line}" for line in few))
    assert (tmp_path / "c" / "compare.csv").is_file()


UNWRITABLE = {
    "compare": (compare, "reference"),
    "sample": (pictures, "samples"),
    "export": (export, "export_onnx"),
    "shards": (streaming, "write_shards"),
    "report": (gallery, "draw"),
}


@pytest.mark.parametrize("task", UNWRITABLE)
def test_that_nothing_can_be_written_is_known_before_the_work(
    run, tmp_path, monkeypatch, capsys, task
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(*UNWRITABLE[task], None)
    source = [] if task in ("compare", "shards") else ["checkpoint=gaussian_vae-digits"]
    with pytest.raises(SystemExit):
        run(f"task={task}", *source, "run_dir=file", "logger=csv")
    said = capsys.readouterr().err
    assert said == "train.py: run_dir must be a folder to write in, got file (File exists)\n"


def test_a_validation_between_two_logged_steps_has_a_time():
    rows = [
        {"step": "2", "perf/seconds": "10", "val/elbo": ""},
        {"step": "3", "perf/seconds": "", "val/elbo": "-5"},
        {"step": "4", "perf/seconds": "14", "val/elbo": "-4"},
    ]
    assert _curve(rows) == [
        {"step": 3, "seconds": 12.0, "elbo": -5.0},
        {"step": 4, "seconds": 14.0, "elbo": -4.0},
    ]
