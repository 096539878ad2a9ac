"""What a user reads when something is wrong: one line, and nothing half-made is left behind."""

import csv
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from stand_ins import no_space

import train
from commandline.check import exit_on_mistake
from datamodules.digits import Digits
from models.base import VAEModule
from vae_lab import loggers
from vae_lab.data import TensorLoader
from vae_lab.latents import Categorical
from vae_lab.storage import checkpoints, files

ROOT = Path(train.__file__).parent
SMOKE = ["experiment=smoke", "network=linear", "~callbacks.pictures"]


def start(monkeypatch, *arguments):
    """train.py in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    exit_on_mistake([*arguments])
    train.main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to be broken."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start(patch, *SMOKE, "run_dir=good", "save.every_n_steps=2")
    return folder / "good"


@pytest.fixture
def fault(tmp_path, monkeypatch, capsys, finished):
    """Breaks something, types a line, returns what stderr says; `good` is a finished run."""
    monkeypatch.chdir(tmp_path)

    def fault(line, breaks=None, left=()):
        if "good" in line:
            shutil.copytree(finished, tmp_path / "good")
        if breaks is not None:
            breaks(tmp_path, monkeypatch)
        before = contents(tmp_path)
        arguments = [*([] if line.startswith(("resume", "task")) else SMOKE), *line.split()]
        if "run_dir" not in line:
            arguments.append("run_dir=x" if "good" not in line else "logger=csv")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            start(monkeypatch, *arguments)
        assert caught.value.code not in (0, None)
        assert {path.split("/")[0] for path in contents(tmp_path) - before} == set(left)
        return capsys.readouterr().err

    return fault


def contents(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".lock"}


def pictures(count, size=9):
    def breaks(folder, _):
        (folder / "pictures").mkdir()
        for number in range(count):
            pixels = np.full((size, size, 3), number, np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"{number:03}.png")

    return breaks


def file(name, content=b""):
    def breaks(folder, _):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return breaks


def both(*all_breaks):
    def breaks(*arguments):
        for one in all_breaks:
            one(*arguments)

    return breaks


def patched(target, name, value):
    return lambda _, monkeypatch: monkeypatch.setattr(target, name, value)


def not_a_number(folder, _):
    pixels = np.zeros((8, 8), np.float32)
    pixels[3, 4] = np.nan
    Image.fromarray(pixels).save(folder / "pictures" / "00-nan.tiff")


def float_images(value):
    def load(self):
        images = load_digits(self)
        train_images = images.train.float() / 255
        train_images[5, 0, 2, 7] = value
        return images._replace(train=train_images)

    return load


load_digits, one_batch = Digits.load, TensorLoader._batch


def as_bytes(self, *position):
    batch = one_batch(self, *position)
    return batch._replace(x=batch.x * 255)


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def flipped(folder, _):
    path = folder / "good" / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Malice:
    def __reduce__(self):
        return Path.touch, (Path("marker"),)


def malicious(folder, _):
    torch.save({"config": {}, "state_dict": Malice()}, folder / "evil.ckpt")


def malicious_config(folder, _):
    path = folder / "good" / "release" / "config.json"
    path.write_text(path.read_text().replace('"MLP"', '"os.system"').replace('"Linear"', '"eval"'))


def last_of_good(content, pattern="last"):
    def breaks(folder, _):
        for path in (folder / "good" / "checkpoints").glob(f"{pattern}.ckpt"):
            path.write_bytes(path.read_bytes()[:1000] if content is None else content)

    return breaks


TEMPRATURE = "unknown setting model.temprature; did you mean model.temperature"
FOLDER = "data=image_folder data.root=pictures data.image_size=8"
NAN = "model.optimizer.lr=1e18 model.lr_warmup_steps=0"
# (line, what is broken first, what stderr says, what is left where the run had begun)
FAULTS = {
    "unknown model": (
        "model=gumble_vae",
        None,
        "unknown model 'gumble_vae'; did you mean gumbel_vae; known: fsq_vae, gaussian_vae",
    ),
    "unknown setting": ("model.temprature=.5", None, TEMPRATURE),
    "unknown setting, added": ("+model.temprature=.5", None, TEMPRATURE),
    "unknown setting, forced": ("++model.temprature=.5", None, TEMPRATURE),
    "wrong type": ("model.optimizer.lr=ten", None, "model.optimizer.lr must be a number"),
    "wrong range": ("data.batch_size=0", None, "batch_size must be at least 1, got 0 (in data)"),
    "negative": ("model.latents=-1", None, "latents must be at least 1, got -1 (in model)"),
    "no training": (
        "trainer.max_epochs=0",
        None,
        "trainer.max_epochs must be positive, got 0",
    ),
    "wrong in an optimizer": (
        "model.optimizer.lr=-1",
        None,
        "Invalid learning rate: -1 (in model.optimizer)",
    ),
    "too many states": ("estimator=exact", None, "10^20 states, more than max_states=4096"),
    "unknown accelerator": (
        "trainer.accelerator=foo",
        None,
        "You selected an invalid accelerator name: `accelerator='foo'`. Available names are: auto,",
    ),
    "no model": ("task=test", None, "task=test needs a trained model: type checkpoint=runs/NAME"),
    "nothing to resume": ("resume=nowhere", None, "no checkpoint at nowhere: expected a .ckpt"),
    "no encoder": ("init.encoder=nowhere", None, "no model at nowhere: there is no such file"),
    "dashes": (
        "--model=gumbel_vae",
        None,
        "settings have no dashes: type model=gumbel_vae instead of --model=gumbel_vae",
    ),
    "equals sign": ("run_dir=runs/a=b", None, "quote the value twice, 'run_dir=\"runs/a=b\"'"),
    "no data folder": (FOLDER, None, "data.root must hold pictures (.bmp .gif .jpeg .jpg .pgm"),
    "no pictures": (FOLDER, file("pictures/a.txt"), "pictures holds 1 files"),
    "no data files": (
        "data=mnist data.root=. data.download=false",
        None,
        "MNIST needs train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte",
    ),
    "corrupted picture": (
        f"{FOLDER} data.batch_size=8",
        both(pictures(30), file("pictures/bad.png", b"\x89PNG\r\n")),
        "pictures/bad.png is not a readable picture (cannot identify image file",
    ),
    "corrupted picture met while training": (
        f"{FOLDER} data.memory_gb=0 data.num_workers=2 data.batch_size=8",
        both(pictures(60), file("pictures/bad.png", b"\x89PNG\r\n")),
        "pictures/bad.png is not a readable picture (cannot identify image file",
        ["x"],
    ),
    "too many corrupted pictures": (
        f"{FOLDER} data.on_corrupt=skip data.batch_size=8",
        both(pictures(30), *[file(f"pictures/0{n}0-bad.png") for n in range(3)]),
        "of 33 pictures cannot be read, at most 1 may be skipped (1 % of all, or one); the first "
        "is pictures/000-bad.png (cannot identify image file",
    ),
    "wrong size": (
        "data=mnist data.root=. data.download=false",
        lambda folder, _: [
            (folder / name).write_bytes(bytes((0, 0, 8, axes, *shape, *[0] * size)))
            for name, axes, shape, size in (
                ("train-images-idx3-ubyte", 3, (0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 9), 81),
                ("train-labels-idx1-ubyte", 1, (0, 0, 0, 1), 1),
                ("t10k-images-idx3-ubyte", 3, (0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 9), 81),
                ("t10k-labels-idx1-ubyte", 1, (0, 0, 0, 1), 1),
            )
        ],
        "must hold 1 images of (28, 28), as many as train-labels-idx1-ubyte has labels, "
        "got shape (1, 9, 9); pictures of any size are for data=image_folder",
    ),
    "range": (
        "data.binarize=none",
        patched(TensorLoader, "_batch", as_bytes),
        "Bernoulli needs values in [0, 1], the batch has 255: divide by 255",
    ),
    "floats for bytes": (
        "seed=1",
        patched(Digits, "load", float_images(0.5)),
        "the train images must be bytes, 0 to 255 (uint8), got torch.float32 from 0 to 1",
    ),
    "fewer images than a batch": (
        "data.batch_size=5000",
        None,
        "one batch needs 5000 training images, and validation and test need 1 each, got 1300, 200 "
        "and 297; type data.batch_size=256",
    ),
    "zero batches": (
        "trainer.limit_train_batches=0.001",
        None,
        "trainer.limit_train_batches=0.001 of 26 batches is none: type a count or a larger",
    ),
    "validation never comes": (
        "trainer.val_check_interval=27 trainer.limit_train_batches=null",
        None,
        "trainer.val_check_interval=27 is more than the 26 training batches of an epoch: type",
    ),
    "NaN in the data": (
        "seed=1",
        patched(Digits, "load", float_images(float("nan"))),
        "the train images must be finite, the first that is not: [5, 0, 2, 7] is nan",
    ),
    "NaN in a picture": (
        f"{FOLDER} data.batch_size=8 data.value_range=[0,1]",
        both(pictures(30), not_a_number),
        "pictures/00-nan.tiff is not a readable picture (some of its pixels are not a number)",
    ),
    "floats in a picture": (
        f"{FOLDER} data.batch_size=8",
        both(pictures(30), not_a_number),
        "pictures/00-nan.tiff is not a readable picture (it holds floats, and which are black and",
    ),
    "no colour": (
        f"{FOLDER} data.background=whit",
        pictures(30),
        "got 'whit'; did you mean white (in data)",
    ),
    "NaN in the loss": (
        NAN,
        None,
        "gradient norm is nan, train/objective is nan, train/elbo is nan, train/reconstruction is "
        "nan, train/kl is nan at step 4, epoch 0, batch 3 (lr 6.9",
        ["x"],
    ),
    "weights that are NaN": (
        "model=reinforce_vae model.optimizer.eps=0 data.binarize=threshold",
        None,
        "the model's probabilities are not finite, as an update was too large",
        ["x"],
    ),
    "no temperature": (
        "model.temperature=0",
        None,
        "temperature must be positive, got 0 (in model)",
    ),
    "falling to no temperature": (
        "model.temperature.end=0",
        None,
        "start and end must be positive, got 1.0 and 0 (in model.temperature)",
    ),
    "float16 and clipping": (
        "trainer.precision=16-mixed trainer.gradient_clip_val=1",
        None,
        "trainer.gradient_clip_val under float16 needs model.optimizer.fused=false",
    ),
    "out of memory": (
        "data.batch_size=64",
        patched(VAEModule, "training_step", out_of_memory),
        "CUDA out of memory: with data.batch_size=64 a step does not fit; type data.batch_size=32 "
        "trainer.accumulate_grad_batches=2 for the same step in halves",
        ["x"],
    ),
    "more memory than there is": (
        f"model.num_samples={10**15}",
        None,
        "can't allocate memory: you tried to allocate 3200000000000000000 bytes",
    ),
    "disk full": (
        "save.failures=0",
        patched(checkpoints.os, "fsync", no_space),
        "No space left on device (it needs ",
        ["x"],
    ),
    "truncated checkpoint": (
        "resume=good/checkpoints/last.ckpt",
        last_of_good(None),
        "last.ckpt is not a readable checkpoint (no zip archive, or cut off); the newest whole",
    ),
    "empty checkpoint": (
        "resume=good/checkpoints/last.ckpt",
        last_of_good(b""),
        "last.ckpt is not a readable checkpoint (an empty file); the newest whole",
    ),
    "HTML for a checkpoint": (
        "resume=good/checkpoints/last.ckpt",
        last_of_good(b"<!DOCTYPE html><html></html>"),
        "last.ckpt is not a readable checkpoint (a web page: download the file)",
    ),
    "no whole checkpoint": (
        "resume=good",
        last_of_good(None, "*"),
        "no checkpoint in good/checkpoints is whole: last.ckpt, last-1.ckpt, best.ckpt",
    ),
    "folder for a checkpoint": (
        "resume=good/images",
        lambda folder, _: (folder / "good" / "images").mkdir(),
        "no checkpoint at good/images: expected a .ckpt file, or a run with checkpoints/best.ckpt",
    ),
    "checksum": (
        "resume=good/checkpoints/last.ckpt",
        flipped,
        "last.ckpt is damaged: its contents do not match their sha256; the newest whole checkpoint "
        "there is good/checkpoints/last-1.ckpt",
    ),
    "another model": (
        "resume=good model.latents=3",
        None,
        "last.ckpt holds another model (model.latents 20 -> 3): size mismatch for vae.head.weight: "
        "copying a param with shape torch.Size([200, 64]) from checkpoint",
    ),
    "malicious checkpoint": (
        "resume=evil.ckpt",
        malicious,
        "evil.ckpt is not a readable checkpoint: it contains code",
    ),
    "malicious release": (
        "init.encoder=good/release run_dir=x",
        malicious_config,
        "unknown network 'eval' in good/release/config.json; known: MLP, Conv",
    ),
    "changed settings": ("resume=good data.batch_size=10", None, "data.batch_size 50 -> 10"),
    "no GPU": (
        "trainer=gpu",
        patched(torch.accelerator, "device_count", lambda: 0),
        "trainer.accelerator=gpu, but there is no GPU: type trainer=cpu",
    ),
    "more GPUs than there are": (
        "trainer.devices=4 trainer.accelerator=gpu",
        patched(torch.accelerator, "device_count", lambda: 2),
        "trainer.devices=4, but the machine has 2: type trainer.devices=2, or",
    ),
    "sweep of several processes": (
        "-m seed=1,2 trainer=ddp",
        None,
        "a sweep (-m) cannot start several processes for a job: type trainer.strategy=auto",
    ),
    "run folder not writable": (
        "run_dir=file/x",
        file("file"),
        "run_dir must be a folder to write in, got file/x (Not a directory)",
    ),
    "run folder taken": ("run_dir=good", None, "good holds a run already: type resume=good"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(fault, name):
    line, breaks, message, *left = FAULTS[name]
    said = fault(line, breaks, *left).splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("train.py: ")
    assert message in said[0], said[0]
    assert not Path("marker").exists()


LOCK = """
import fcntl, os, time
with open("x/.lock", "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(os.getpid(), file=file, flush=True)
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_run_in_use_is_left_alone(fault, tmp_path):
    (tmp_path / "x").mkdir()
    other = subprocess.Popen([sys.executable, "-c", LOCK], stdout=subprocess.PIPE, cwd=tmp_path)
    try:
        assert other.stdout.readline() == b"locked\n"
        said = fault("seed=1")
    finally:
        other.kill()
        other.communicate()
    assert said.startswith(f"train.py: x is in use by process {other.pid}: wait for its end")


# What is said, while training goes on.


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """What stderr says of a run that comes to its end."""
    monkeypatch.chdir(tmp_path)

    def told(line, breaks=None):
        if breaks is not None:
            breaks(tmp_path, monkeypatch)
        with warnings.catch_warnings(record=True) as caught:  # pytest would show them elsewhere
            warnings.simplefilter("default")
            start(monkeypatch, *SMOKE, "run_dir=x", *line.split())
            shown = [warnings.formatwarning(w.message, w.category, "", 0) for w in caught]
        assert (tmp_path / "x" / "release").is_dir()
        return capsys.readouterr().err + "".join(shown)

    return told


def nan_at(step, only_gradient=False):
    terms = VAEModule._terms

    def spoilt(self, x, y):
        found = terms(self, x, y)
        if not self.training or self.trainer.global_step + 1 != step:
            return found
        if only_gradient:
            found.objective.register_hook(lambda gradient: gradient * float("nan"))
            return found
        return found._replace(objective=found.objective * float("nan"))

    return patched(VAEModule, "_terms", spoilt)


def first_code(self, q):
    return torch.nn.functional.one_hot(self.mode(q).argmax(-1) * 0, self.categories)


def full_for(name, first):
    """No room for two writes of this file, the `first` one and the next."""

    def breaks(_, monkeypatch):
        calls, write = itertools.count(1), files.write_durably

        def full(path, content):
            if path.name == name and next(calls) in (first, first + 1):
                no_space()
            write(path, content)

        monkeypatch.setattr(files, "write_durably", full)

    return breaks


def no_server(_, monkeypatch):
    wandb.teardown()  # it remembers the mode of another test's run
    monkeypatch.setattr(loggers, "INIT_SECONDS", 2)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE")


def lost(_, monkeypatch):
    """W&B's process dies after the first row; nothing more may be asked of it."""
    run, disabled = (mock.create_autospec(wandb.Run, instance=True, id=i) for i in "xy")
    run.log.side_effect = [None, ConnectionResetError("its process is gone")]
    monkeypatch.setattr(wandb, "init", mock.Mock(side_effect=[run, disabled]))


WARNINGS = {
    "one corrupted picture of many": (
        f"{FOLDER} data.on_corrupt=skip data.batch_size=16 data.val_size=10",
        both(pictures(120), file("pictures/bad.png")),
        "): the next picture stands in; 1 of 121 pictures cannot be read",
    ),
    "low temperature": (
        "model.temperature=0.04",
        None,
        "UserWarning: temperature 0.04 is below 0.05: the gradient's variance grows as 1/temper",
    ),
    "a step left out": (
        "on_nonfinite=skip trainer.log_every_n_steps=1",
        nan_at(3),
        "UserWarning: gradient norm is nan, train/objective is nan at step 3: left out (on_nonfi",
    ),
    "posterior collapse": (
        "objective.beta=100 model.optimizer.lr=0.03 model.lr_warmup_steps=0 trainer.max_epochs=4 "
        "trainer.limit_train_batches=null",
        None,
        "PosteriorCollapseWarning: val/kl is 0.",
    ),
    "dead codes": (
        "trainer.max_epochs=3 model.latents=2 model.categories=16",
        patched(Categorical, "codes", first_code),
        "DeadCodesWarning: of 16 categories a latent variable uses 1 (val/code_perplexity); type",
    ),
    "disk full for a while": (
        "seed=1",
        full_for(".partial", 1),
        "free); there is no checkpoint yet; training goes on (2 more may fail)",
    ),
    "disk full for metrics": (
        "seed=1",
        full_for(".metrics.csv.partial", 2),
        "free); the rows of x/metrics.csv wait for room",
    ),
    "W&B down": (
        "logger=wandb",
        no_server,
        "UserWarning: W&B: Failed to get resume status for run",
    ),
    "W&B lost": (
        "logger=wandb",
        lost,
        "UserWarning: W&B: its process is gone; nothing more is logged to it, metrics.csv has",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_training_goes_on(told, name):
    line, breaks, message = WARNINGS[name]
    said = told(line, breaks)
    assert said.count(message) == 1, said
    assert "Traceback" not in said


@pytest.mark.parametrize(("fused", "only_gradient"), [("true", False), ("false", True)])
def test_a_step_left_out_is_counted_and_is_in_no_metric(told, tmp_path, fused, only_gradient):
    clip = "trainer.gradient_clip_val=1 trainer.gradient_clip_algorithm=value"
    skip = f"on_nonfinite=skip trainer.log_every_n_steps=1 model.optimizer.fused={fused}"
    told(f"{skip} {clip}", nan_at(3, only_gradient))
    with (tmp_path / "x" / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["train/skipped_updates"] for row in table} == {"", "1.0"}
    values = [float(v) for row in table for name, v in row.items() if v and name != "step"]
    assert np.isfinite(values).all()
    assert [row["train/elbo"] == "" for row in table][:4] == [False, False, True, False]


# With processes of their own.


def process(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


LONG = ["network=linear", "logger=csv", "report=false", "~callbacks.pictures"]
LONG += ["trainer.max_epochs=100000"]


def test_killed_is_not_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fork = multiprocessing.get_context("fork").Process(
        target=start, args=(monkeypatch, *LONG, "run_dir=x")
    )
    fork.start()
    while not Path("x/checkpoints/last.ckpt").exists():
        assert fork.is_alive()
        time.sleep(0.05)
    fork.kill()
    fork.join()
    last = torch.load("x/checkpoints/last.ckpt", weights_only=True)
    line = [*LONG[:-1], "run_dir=x", "resume=auto", f"trainer.max_epochs={last['epoch'] + 2}"]
    start(monkeypatch, *line)
    assert f"resuming x at step {last['global_step']} from" in capsys.readouterr().out


@pytest.mark.slow
def test_the_processes_end_with_the_one_that_dies(tmp_path):
    two = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    run = process(tmp_path, *LONG, "run_dir=x", *two)
    wait_for(tmp_path / "x" / "checkpoints" / "last.ckpt", run)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    [other] = [c for c in children if b"train.py" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(int(other), signal.SIGKILL)
    said, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    assert said.count("another process of this run was lost") == 1
    assert "Traceback" not in said
