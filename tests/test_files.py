"""Files are whole or as they were."""

import os

import pytest

from vae_lab.storage import files


def test_a_write_without_the_right_to_it_says_where_to_write(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/x: File exists; type run_dir=FOLDER, one to"):
        files.write(tmp_path / "file" / "x", b"")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    files.write(path, b"old")

    def no_space(descriptor):
        assert path.read_bytes() == b"old"  # a reader sees it until all of the new one is there
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            files.write(path, b"of which a part is written")
    assert path.read_bytes() == b"old"
    files.write(path, b"new")
    assert path.read_bytes() == b"new" and [*path.parent.iterdir()] == [path]
