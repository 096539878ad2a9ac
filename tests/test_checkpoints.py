"""A checkpoint is whole or absent, and says which; loading one never runs code."""

import os
import random
import signal
import time

import pytest
import stand_ins
import torch

from vae_lab.callbacks import Checkpointing, DurableIO, checkpointing
from vae_lab.storage import checkpoints
from vae_lab.storage.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    verify,
    versions,
)


def checkpoint(step=1, size=500):
    return {"config": {"seed": 1}, "global_step": step, "weight": torch.full((size,), float(step))}


@pytest.fixture
def last(tmp_path):
    """The newest checkpoint of a run that has two."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        save_checkpoint(checkpoint(step), path, keep=2)
    return path


def test_a_checkpoint_is_what_was_saved_and_torch_reads_it(last):
    for found in (load_checkpoint(last), torch.load(last, weights_only=True)):
        assert found["config"] == {"seed": 1} and found["global_step"] == 2
        assert torch.equal(found["weight"], checkpoint(2)["weight"])


def test_the_newest_are_kept(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in range(5):
        save_checkpoint(checkpoint(step), path, keep=3)
    assert [p.name for p in versions(path)] == ["last.ckpt", "last-1.ckpt", "last-2.ckpt"]
    assert [load_checkpoint(p)["global_step"] for p in versions(path)] == [4, 3, 2]
    save_checkpoint(checkpoint(5), path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_every_flipped_bit_is_found(last):
    whole = last.read_bytes()
    for place in [*range(0, len(whole), 97), *range(len(whole) - 100, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        last.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged|is not a readable checkpoint"):
            verify(last)


def test_torch_would_not_have_noticed(last):
    """A negative control of the one above: most of a file is the values of tensors."""
    damaged = bytearray(last.read_bytes())
    damaged[damaged.index(checkpoint(2)["weight"].numpy().tobytes())] ^= 1
    last.write_bytes(damaged)
    assert not torch.equal(torch.load(last, weights_only=True)["weight"], checkpoint(2)["weight"])


@pytest.mark.parametrize("left_out", [1, 20, 71, 72, 93, 500, 0.5, 0.99])
def test_a_cut_off_checkpoint_is_refused(last, left_out):
    whole = last.read_bytes()
    end = -left_out if isinstance(left_out, int) else int((1 - left_out) * len(whole))
    last.write_bytes(whole[:end])
    with pytest.raises(ValueError, match="last.ckpt is not a readable checkpoint") as caught:
        load_checkpoint(last)
    assert str(caught.value).endswith(
        "the newest whole checkpoint there is " + str(last)[:-5] + "-1.ckpt"
    )


# Some of these make the unpickler pop from an empty stack.
CONTENTS = {
    b"": "an empty file",
    b"<!DOCTYPE html><html>": "a web page: download the file",
    b"\n<HTML lang='en'>": "a web page",
    b"hello": "no zip archive, or cut off",
    b"\x80\x02Q.": "no zip archive, or cut off",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"is not a readable checkpoint \({CONTENTS[content]}"):
        load_checkpoint(path)


def test_a_folder_and_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a readable checkpoint \(a folder\)"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, torch.ones(2), [1]])
def test_the_checkpoint_of_another_program_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of train.py: it holds no config"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_without_a_digest_is_read(tmp_path):
    torch.save(checkpoint(), tmp_path / "old.ckpt")
    assert load_checkpoint(tmp_path / "old.ckpt")["global_step"] == 1


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path, trace = tmp_path / "last.ckpt", tmp_path / "trace"
    save_checkpoint({"config": {}, "malice": Malice(trace)}, path)
    with pytest.raises(ValueError, match="contains code or objects") as caught:
        DurableIO().load_checkpoint(path, weights_only=False)
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the malice must work, or this tests nothing"


def test_the_asked_for_comes_first_and_else_what_is_whole(last, caplog):
    run = last.parent.parent
    save_checkpoint(checkpoint(), last.with_name("best.ckpt"))
    assert find_checkpoint(run).name == "best.ckpt"
    assert find_checkpoint(str(run), "last") == find_checkpoint(last) == last
    assert not caplog.records
    last.write_bytes(last.read_bytes()[:-1])
    assert find_checkpoint(run, "last").name == "last-1.ckpt"
    assert "skipped: " in caplog.text and "last.ckpt is not a readable" in caplog.text
    for name in ("last-1.ckpt", "best.ckpt"):
        last.with_name(name).write_bytes(b"")
    with pytest.raises(ValueError, match="is whole: best.ckpt, last.ckpt, last-1.ckpt"):
        find_checkpoint(run)


def test_no_checkpoint_is_said_plainly(tmp_path):
    wanted = "expected a .ckpt file, or a run with checkpoints/best.ckpt or checkpoints/last.ckpt"
    for source in (tmp_path, tmp_path / "absent.ckpt"):
        with pytest.raises(FileNotFoundError, match=wanted):
            find_checkpoint(source)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(last, monkeypatch, where):
    names = sorted(p.name for p in last.parent.iterdir())
    monkeypatch.setattr(checkpoints.os, where, stand_ins.no_space)
    monkeypatch.setattr(
        type(last), "replace", stand_ins.no_space if where == "replace" else type(last).replace
    )
    message = r"cannot save .*last.ckpt: No space .* \(it needs 0.0 MB, [\d.]+ MB are free\)"
    with pytest.raises(OSError, match=message):
        save_checkpoint(checkpoint(3), last, keep=2)
    assert sorted(p.name for p in last.parent.iterdir()) == names
    assert load_checkpoint(last)["global_step"] == 2


def test_training_goes_on_for_some_failures(last, monkeypatch, capsys):
    io = DurableIO(keep=2, failures=2)
    monkeypatch.setattr(checkpoints.os, "fsync", stand_ins.no_space)
    io.save_checkpoint(checkpoint(3), last)
    said = capsys.readouterr().err
    assert f"the last whole checkpoint is {last}; training goes on (1 more may fail)" in said
    monkeypatch.undo()
    io.save_checkpoint(checkpoint(4), last)  # in a row, that is
    monkeypatch.setattr(checkpoints.os, "fsync", stand_ins.no_space)
    for _ in range(2):
        io.save_checkpoint(checkpoint(5), last)
    with pytest.raises(OSError, match="make room, then type resume="):
        io.save_checkpoint(checkpoint(5), last)
    monkeypatch.undo()
    assert load_checkpoint(last)["global_step"] == 4


def test_lightning_saves_keep_the_newest_and_one_best(tmp_path):
    io = DurableIO(keep=3)
    for step in range(4):
        for name in ("last", "best"):
            io.save_checkpoint(checkpoint(step), tmp_path / f"{name}.ckpt")
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["best", "last", "last-1", "last-2"]


def save_forever(path, step, pipe):
    try:
        while True:
            step += 1
            save_checkpoint(checkpoint(step, 200_000), path, keep=2)
            os.write(pipe, b".")
    finally:
        os._exit(1)  # an error is not to go on with the tests


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_fifty_kills_while_saving(tmp_path, caplog):
    path = tmp_path / "checkpoints" / "last.ckpt"
    chance, steps = random.Random(0), [0]
    for _ in range(50):
        saved, pipe = os.pipe()
        if not (child := os.fork()):
            save_forever(path, steps[-1], pipe)
        os.read(saved, 1)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(saved), os.close(pipe)
        found = load_checkpoint(find_checkpoint(tmp_path, "last"))
        assert (found["weight"] == found["global_step"]).all()
        steps.append(found["global_step"])
    assert "skipped" not in caplog.text  # whole or absent
    assert steps == sorted(set(steps))  # every process went on from the one before it
    assert {p.name for p in path.parent.iterdir()} <= {"last.ckpt", "last-1.ckpt", ".partial"}


@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (DurableIO, {"keep": 0}),
        (DurableIO, {"failures": -1}),
        (Checkpointing, {"folder": "x", "every_n_steps": 0}),
        (Checkpointing, {"folder": "x", "every_minutes": 0.0}),
    ],
)
def test_refused_settings(cls, setting):
    with pytest.raises(ValueError, match=f"{[*setting][-1]}.*, got "):
        cls(**setting)


class Judged(stand_ins.Model):
    """Its first epoch is the best, its second the worst of three."""

    def validation_step(self, batch, batch_idx):
        elbo = [3.0, 1.0, 2.0][self.trainer.current_epoch]
        self.log("val/elbo", elbo, batch_size=len(batch.x))


@pytest.mark.parametrize(("monitor", "epoch"), [("val/elbo", 0), (None, 2)])
def test_the_best_is_what_is_highest_in_the_monitor_and_without_one_the_newest(
    tmp_path, monitor, epoch
):
    callbacks = [Checkpointing(tmp_path, monitor=monitor)]
    fitted = stand_ins.trainer(callbacks, plugins=[DurableIO()], enable_checkpointing=True)
    fitted.fit(Judged(), stand_ins.batches(), stand_ins.batches(1))
    assert read_checkpoint(tmp_path / "best.ckpt")["epoch"] == epoch


def test_a_best_that_found_no_room_is_not_the_best(tmp_path, monkeypatch):
    def save(checkpoint, path, keep):
        if path.stem == "best" and checkpoint["epoch"] == 0:
            stand_ins.no_space()
        save_checkpoint(checkpoint, path, keep)

    monkeypatch.setattr(checkpointing, "save_checkpoint", save)
    fitted = stand_ins.trainer(
        [Checkpointing(tmp_path)], plugins=[DurableIO()], enable_checkpointing=True
    )
    fitted.fit(Judged(), stand_ins.batches(), stand_ins.batches(1))
    best = read_checkpoint(tmp_path / "best.ckpt")
    assert best["epoch"] == 2 and best["callbacks"]["Checkpointing"] == {"best": 2.0}
