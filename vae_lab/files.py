"""Files that are whole whenever somebody looks, also after a crash."""

import os
from pathlib import Path


def write(path: str | Path, content: bytes | memoryview) -> None:
    """Puts a file in the place of the old one in a single step, and makes its folder.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")  # what a kill leaves is overwritten
    write_durably(partial, content)
    partial.replace(path)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Writes a file, all of which is on the disk afterwards."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Without this a new name in it may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
