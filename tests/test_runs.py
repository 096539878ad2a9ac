"""A run's folder: its name, and who works in it."""

import subprocess
import sys

import pytest

from vae_lab.runs import default_folder, lock

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
    folders = set()
    for _ in range(3):
        folder = default_folder("gumbel_vae", "mnist", tmp_path)
        folder.mkdir(parents=True)  # fails where it exists
        folders.add(folder)
    assert len(folders) == 3
    assert all("-gumbel_vae-mnist" in folder.name for folder in folders)


def test_two_processes_do_not_share_a_folder(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="is in use by process 4711: wait for its end, or"):
            lock(tmp_path).__enter__()
        other.kill()
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text().strip().isdigit()


def test_a_folder_that_cannot_be_written_in_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="run_dir must be a folder to write in, got .*file/x"):
        lock(tmp_path / "file" / "x").__enter__()
