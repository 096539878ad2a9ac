"""Files that are whole whenever somebody looks, also after a crash."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

ELSEWHERE = "type run_dir=FOLDER, one to write in"


def write(path: str | Path, content: bytes | memoryview, advice: str = ELSEWHERE) -> None:
    """Puts a file in the place of the old one in a single step, and makes its folder.

    Args:
        advice: what to do where it cannot be written.

    Raises:
        OSError: it cannot be written, for want of room how much it needs; the old one is still
            there.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")  # what a kill leaves is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(partial, content)
        partial.replace(path)
    except OSError as error:
        raise failed(error, path, partial, len(content), advice) from error


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Writes a file, all of which is on the disk afterwards."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` for a file or folder that is written bit by bit: it takes the place of
    the old one in a single step, if nothing fails, and is removed otherwise.

    Raises:
        OSError: it cannot be written; one line.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)  # what a kill has left
        yield partial
        if not partial.is_dir():
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        size = partial.stat().st_size if partial.is_file() else 0
        _remove(partial)
        if error.errno is None:  # a reader's, which has said it all
            raise
        raise failed(error, path, partial, size, "choose another place") from error
    except BaseException:  # Ctrl-C too leaves half of it
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def failed(
    error: OSError, path: Path, partial: Path, size: int, advice: str = ELSEWHERE
) -> OSError:
    """The error in words, after what there is of the file has been removed."""
    with contextlib.suppress(OSError):
        partial.unlink()
    message = f"cannot save {path}: {error.strerror}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return OSError(error.errno, f"{message}; {advice}")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    room = f"it needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
    return OSError(error.errno, f"{message} ({room})")


def sync_folder(folder: Path) -> None:
    """Without this a new name in it may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
