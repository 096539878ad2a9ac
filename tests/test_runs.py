"""A run's folder: its name, and who works in it."""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from vae_lab.storage.runs import default_folder, lock

HOLD = """
import fcntl, sys
file = open(sys.argv[1] + "/.lock", "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("4711")
file.flush()
print("locked", flush=True)
sys.stdin.read()
"""


def test_every_run_has_its_own_folder(tmp_path):
    with ExitStack() as held:
        folders = [held.enter_context(default_folder("a", "b", tmp_path)) for _ in range(3)]
        assert len(set(folders)) == 3
        assert all("-a-b" in folder.name and folder.is_dir() for folder in folders)
        (folders[1] / "metrics.csv").touch()
    assert [*tmp_path.iterdir()] == [folders[1]]


def test_two_processes_do_not_share_a_folder(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="is in use by process 4711: wait for its end, or"):
            lock(tmp_path).__enter__()
        other.kill()
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text().strip().isdigit()


def test_a_disk_without_locks_keeps_nobody_from_training(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match="knows no locks .*: nothing keeps a second process out"):
        with lock(tmp_path):
            assert (tmp_path / ".lock").read_text().strip().isdigit()


def test_a_folder_that_cannot_be_written_in_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="run_dir must be a folder to write in, got .*file/x"):
        lock(tmp_path / "file" / "x").__enter__()
