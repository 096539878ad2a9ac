"""Checkpoint files: whole or absent, and checked before they are used.

A checkpoint is the zip archive that `torch.save` makes, with the SHA-256 of all bytes before it as
the archive's comment. So a file and its digest cannot disagree, and torch.load reads the file as it
reads any other. The file appears under its name in one step, when all of it is on the disk.

    checkpoints/last.ckpt, last-1.ckpt, ...     the newest, and those before it
    checkpoints/best.ckpt                       that with the best validation
"""

import hashlib
import io
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from . import files

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # the folder of a run that keeps them
MARK = b"sha256:"
DIGEST_SIZE = len(MARK) + 64

# What torch.load raises, depending on where in the file the damage is.
BROKEN = (
    RuntimeError,
    EOFError,
    LookupError,
    AssertionError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


class Saved(NamedTuple):
    """A checkpoint of train.py as it was read from its file.

    Attributes:
        path: of the file.
        content: tensors and plain types.
        sealed: the file has a sha256, and it matched; the files of version 0.1.0 have none.
        stamp: identifies the file that was read; another file at the same path has another one.
    """

    path: Path
    content: dict[str, Any]
    sealed: bool
    stamp: tuple[int, ...]

    @property
    def is_current(self) -> bool:
        """Is the file at this path still the one that was read."""
        return self.path.is_file() and stamp_of(self.path.stat()) == self.stamp

    def is_newest_of(self, folder: Path) -> bool:
        """Is it what resuming the run in this folder would go on with."""
        candidates = _candidates(folder / CHECKPOINTS, "last")
        newer = [*takewhile(lambda path: not path.samefile(self.path), candidates)]
        return len(newer) < len(candidates) and next(_whole(newer), None) is None


def save_checkpoint(checkpoint: dict[str, Any], path: Path, keep: int = 1) -> None:
    """Writes a checkpoint so that a crash at any moment leaves the old one or the new one.

    Args:
        checkpoint: tensors and plain types.
        path: `last.ckpt`; the files that had this name before become `last-1.ckpt`, ...
        keep: so many of them are kept, this one included.

    Raises:
        OSError: it cannot be written, and how much it needs; all that was there is still there.
    """
    # In memory first, so that all that can go wrong with the file goes wrong in a plain write.
    content = _sealed(checkpoint)
    partial = path.with_name(".partial")  # one name: what a kill leaves is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_durably(partial, content)
        _make_room(path, keep)
        partial.replace(path)
        files.sync_folder(path.parent)
    except OSError as error:
        raise files.failed(error, path, partial, len(content)) from error


def write_checkpoint(checkpoint: dict[str, Any], path: Path, advice: str) -> None:
    """:func:`save_checkpoint` in a folder that is not a run's: no other file there is touched.

    Args:
        advice: what to do where it cannot be written.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    files.write(path, _sealed(checkpoint), advice)


def _sealed(checkpoint: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(-2, os.SEEK_END)  # the archive's last field is the length of its comment
    buffer.write(DIGEST_SIZE.to_bytes(2, "little"))
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(MARK + digest.encode())
    return buffer.getbuffer()


def _make_room(path: Path, keep: int) -> None:
    """Renames last-1 to last-2, last to last-1; and removes what is too old."""
    for old in [p for p in versions(path) if _age(p) >= keep]:
        old.unlink()
    for age in range(keep - 1, 0, -1):
        newer = _version(path, age - 1)
        if newer.is_file():
            newer.replace(_version(path, age))


def _version(path: Path, age: int) -> Path:
    return path.with_stem(f"{path.stem}-{age}") if age else path


def _age(path: Path) -> int:
    match = re.search(r"-(\d+)$", path.stem)
    return int(match[1]) if match else 0


def versions(path: Path) -> list[Path]:
    """The files `last.ckpt`, `last-1.ckpt`, ... that exist, the newest first."""
    pattern = re.compile(rf"{re.escape(path.stem)}(-[1-9]\d*)?")
    found = path.parent.glob(f"{path.stem}*{path.suffix}")
    return sorted((p for p in found if pattern.fullmatch(p.stem)), key=_age)


def verify(path: Path) -> bool:
    """Reads the whole file and compares it with its digest.

    Returns:
        False if it has none, as those of version 0.1.0, and only its ends were looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or not all of it, or not as it was written.
    """
    with _open_whole(path) as (_, sealed):
        return sealed


@contextmanager
def _open_whole(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """A file that has been verified, open at its start; and whether it has a digest."""
    if path.is_dir():
        raise ValueError(f"{path} is not a readable checkpoint (a folder)")
    with path.open("rb") as file:
        sealed = _verify(file, path)
        file.seek(0)
        yield file, sealed


def _verify(file: BinaryIO, path: Path) -> bool:
    start = file.read(512)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - DIGEST_SIZE, 0))
    seal = file.read()
    if not size:
        raise ValueError(f"{path} is not a readable checkpoint (an empty file)")
    if re.match(rb"\s*<(!doctype|html)", start, re.IGNORECASE):
        raise ValueError(f"{path} is not a readable checkpoint (a web page: download the file)")
    if not seal.startswith(MARK):
        if seal[-22:-18] == b"PK\5\6" and seal.endswith(b"\0\0"):
            return False  # an archive without a comment: written by torch.save itself
        raise ValueError(f"{path} is not a readable checkpoint (no zip archive, or cut off)")
    if seal != MARK + _digest(file, size - DIGEST_SIZE):
        raise ValueError(f"{path} is damaged: its contents do not match their sha256")
    return True


def _digest(file: BinaryIO, size: int) -> bytes:
    """The SHA-256 of the first bytes of a file."""
    file.seek(0)
    digest, left = hashlib.sha256(), size
    while left:
        block = file.read(min(left, 1 << 20))
        digest.update(block)
        left -= len(block)
    return digest.hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of tensors and plain types; refuses anything else, without running it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not verify, or cannot be read; names one beside it that is whole.
    """
    return _read(path)[0]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """:func:`read_checkpoint` of a file that train.py has written.

    Raises:
        ValueError: another program has.
    """
    return load_saved(path).content


def load_saved(path: Path) -> Saved:
    """:func:`load_checkpoint`, with what is known of the file."""
    return _of_train_py(path, *_read(path))


def read_saved(source: str | Path, first: str = "best") -> Saved:
    """:func:`find_checkpoint` and :func:`load_saved`, for which the file is read once.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are some, and none is whole; or the first whole one cannot be read.
    """
    candidates = saved_at(source, first)
    if candidates == [Path(source)]:
        return load_saved(Path(source))
    for path in candidates:
        with ExitStack() as held:
            try:
                file, sealed = held.enter_context(_open_whole(path))
            except (ValueError, OSError) as error:
                log.warning("skipped: %s", error)
                continue
            with _naming_a_whole_one(path):
                content = _content(file, path)
            return _of_train_py(path, content, sealed, stamp_of(os.fstat(file.fileno())))
    raise _none_is_whole(source, candidates)


def _of_train_py(path: Path, content: Any, sealed: bool, stamp: tuple[int, ...]) -> Saved:
    if not isinstance(content, dict) or "config" not in content:
        raise ValueError(f"{path} is not a checkpoint of train.py: it holds no config")
    return Saved(path, content, sealed, stamp)


def _read(path: Path) -> tuple[Any, bool, tuple[int, ...]]:
    """The content of a file, whether it has a digest, and its stamp."""
    with _naming_a_whole_one(path), _open_whole(path) as (file, sealed):
        return _content(file, path), sealed, stamp_of(os.fstat(file.fileno()))


def stamp_of(found: os.stat_result) -> tuple[int, ...]:
    """Marks by which a file differs from another one that takes its place."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _naming_a_whole_one(path: Path) -> Iterator[None]:
    """Adds to what is wrong with a checkpoint the newest whole one beside it."""
    try:
        yield
    except ValueError as error:
        whole = next(_whole(_candidates(path.parent, "last"), quiet=True), None)
        hint = "" if whole is None else f"; the newest whole checkpoint there is {whole}"
        raise ValueError(f"{error}{hint}") from None


def _content(file: BinaryIO, path: Path) -> Any:
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is not a readable checkpoint: it contains code or objects, not only tensors "
            "and plain types, and was not loaded"
        ) from None
    except BROKEN as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path} is not a readable checkpoint ({reason[0] if reason else 'cut off'})"
        ) from None


def run_of(path: Path) -> Path | None:
    """The folder of the run that keeps a checkpoint; None of a file from elsewhere."""
    path = path if path.parent.name else path.absolute()
    return path.parent.parent if path.parent.name == CHECKPOINTS else None


def find_checkpoint(source: str | Path, first: str = "best") -> Path:
    """The checkpoint file that `source` is, or that a run's folder has.

    Args:
        source: a file or a run's folder.
        first: which of a run's, "best" or "last"; the others where that is absent or damaged.
            What is skipped is logged as a warning.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are some, and none is whole.
    """
    candidates = saved_at(source, first)
    if candidates == [Path(source)]:
        return Path(source)
    if (path := next(_whole(candidates), None)) is None:
        raise _none_is_whole(source, candidates)
    return path


def _none_is_whole(source: str | Path, candidates: list[Path]) -> ValueError:
    names = ", ".join(path.name for path in candidates)
    return ValueError(f"no checkpoint in {source}/checkpoints is whole: {names}")


def saved_at(source: str | Path, first: str = "best") -> list[Path]:
    """The file that `source` is, or those that a run's folder has, the first that is meant first.

    Raises:
        FileNotFoundError: there is none.
    """
    source = Path(source)
    found = [source] if source.is_file() else _candidates(source / CHECKPOINTS, first)
    if not found:
        raise FileNotFoundError(
            f"no checkpoint at {source}: expected a .ckpt file, or a run with "
            "checkpoints/best.ckpt or checkpoints/last.ckpt"
        )
    return found


def _candidates(folder: Path, first: str) -> list[Path]:
    best, last = versions(folder / "best.ckpt"), versions(folder / "last.ckpt")
    return best + last if first == "best" else last + best


def _whole(paths: list[Path], quiet: bool = False) -> Iterator[Path]:
    for path in paths:
        try:
            verify(path)
        except (ValueError, OSError) as error:
            if not quiet:
                log.warning("skipped: %s", error)
        else:
            yield path
