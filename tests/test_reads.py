"""A checkpoint is opened once, however many ask what is in it."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tasks import fit
from tasks.handing import HandedIO, hand
from vae_lab.storage.checkpoints import load_checkpoint, load_saved, read_saved, save_checkpoint

SMOKE = ["experiment=smoke", "network=linear", "callbacks.pictures=null", "trainer=cpu"]
SMOKE += ["report=false", "save.every_n_steps=3"]


@pytest.fixture
def opened(run, monkeypatch):
    """How often each checkpoint of a run is opened to be read, where a line is typed."""
    run(*SMOKE, "run_dir=x")
    counts: Counter[str] = Counter()
    unwatched, load = Path.open, torch.load

    def watched(path, mode="r", *arguments, **options):
        counts.update([path.name] if path.suffix == ".ckpt" and mode == "rb" else [])
        return unwatched(path, mode, *arguments, **options)

    def watched_load(file, **options):
        assert not isinstance(file, str | Path)  # which would open it again
        return load(file, **options)

    def opened(*line):
        counts.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", watched)
            patch.setattr(torch, "load", watched_load)
            run(*line)
        return dict(counts)

    return opened


def test_a_run_that_goes_on_reads_each_checkpoint_once(opened):
    once = {"last.ckpt": 1, "best.ckpt": 1}  # to go on from, and to be tested and released
    assert opened("resume=x", "trainer.max_epochs=3") == once
    assert opened("resume=x/checkpoints/last.ckpt", "trainer.max_epochs=4") == once
    assert opened(*SMOKE, "run_dir=x", "resume=auto", "trainer.max_epochs=5") == once
    line = ["resume=x", "trainer.max_epochs=6", "exact=false", "data.batch_size=40"]
    assert opened(*line) == once


@pytest.mark.parametrize("task", ["test", "evaluate", "report", "explore"])
def test_a_task_reads_its_checkpoint_once(opened, monkeypatch, task):
    monkeypatch.setattr("vae_lab.explorer.page.serve", lambda *_: None)
    few = ["evaluate.parts=[bound]", "evaluate.images=20", "evaluate.samples=2"]
    assert opened(f"task={task}", "checkpoint=x", *few) == {"best.ckpt": 1}


def test_a_file_that_was_replaced_meanwhile_is_read_again(run, tmp_path, monkeypatch, capsys):
    """Another process has trained on, and left, while this one read its data."""
    run(*SMOKE, "run_dir=x")
    last = tmp_path / "x" / "checkpoints" / "last.ckpt"
    found = read_saved(tmp_path / "x", "last")
    assert found.is_current and found.is_newest_of(tmp_path / "x")
    check = fit._check_data

    def slow(*arguments):
        save_checkpoint(load_checkpoint(last) | {"global_step": 9}, last, 2)
        return check(*arguments)

    monkeypatch.setattr(fit, "_check_data", slow)
    run("resume=x", "trainer.max_epochs=3")
    assert not found.is_current
    assert "resuming x at step 9 from x/checkpoints/last.ckpt" in capsys.readouterr().out


def test_what_is_handed_is_taken_once_and_only_if_it_is_the_file(tmp_path):
    path, io = tmp_path / "a.ckpt", HandedIO()
    trainer = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=io))
    save_checkpoint({"config": {}, "step": 1}, path)
    saved = load_saved(path)
    assert hand(trainer, saved) == path and io.load_checkpoint(str(path)) is saved.content
    assert io.load_checkpoint(path) is not saved.content
    hand(trainer, saved)
    save_checkpoint({"config": {}, "step": 2}, path)
    assert io.load_checkpoint(path)["step"] == 2
