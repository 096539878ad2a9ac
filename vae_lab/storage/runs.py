"""A run's folder: what is in it, and who works in it.

runs/<name>/
    config.yaml         the resolved config
    commands.txt        what to type to make the run again: to begin it, and to go on with it
    metrics.csv         a row a logged step
    checkpoints/        the last ones and the best one; see :mod:`vae_lab.storage.checkpoints`
    images/             PNG pictures; see :mod:`vae_lab.drawing.gallery`
    release/            model.safetensors, config.json
    report.html         all of it on one page; see :mod:`vae_lab.drawing.report`
"""

import csv
import errno
import fcntl
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from ..optional import needs
from . import files
from .sources import FILES, is_release

with needs("train", __name__):
    import yaml

AGAIN = "runs/again"  # where the commands of a run that was resumed make it again


class Run(NamedTuple):
    """The contents of a run's folder or of a release; a field is empty if its file is absent."""

    folder: Path
    name: str
    config: dict[str, Any]
    card: dict[str, Any]  # of the release
    evaluation: dict[str, Any]
    rows: list[dict[str, str]]  # of metrics.csv
    commands: list[str]
    pictures: dict[str, Path]
    parameters: int | None


@contextmanager
def default_folder(model: str, data: str, root: Path = Path("runs")) -> Iterator[Path]:
    """Makes a folder for a new run, with a name that nobody has: date, time, model and data.

    It goes again if nothing was put into it.

    Raises:
        ValueError: there is no place to write in.
    """
    name = f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{model}-{data}"
    folder, count = root / name, 1
    while not _made(folder):
        count += 1
        folder = root / f"{name}-{count}"
    try:
        yield folder
    finally:
        with suppress(OSError):  # there is something in it
            folder.rmdir()
            root.rmdir()


def _made(folder: Path) -> bool:
    """Makes a folder that is not there; only one of several processes can."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise _not_writable(folder, error) from None
    return True


def writable(folder: Path) -> Path:
    """Makes a folder where there is none; returns the file in it that says who works there.

    Raises:
        ValueError: it cannot be written in.
    """
    file = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise _not_writable(folder, error) from None
    return file


def _not_writable(folder: Path, error: OSError) -> ValueError:
    return ValueError(f"run_dir must be a folder to write in, got {folder} ({error.strerror})")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder, until this one leaves or dies.

    Raises:
        ValueError: the folder cannot be written in, or another process works there.
    """
    with writable(folder).open("a+") as file:
        try:
            # Of the process, not of the open file as flock's: workers that outlive it hold nothing.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ValueError(
                    f"{folder} is in use by process {file.read().strip() or 'unknown'}: wait for "
                    "its end, or type another run_dir"
                ) from None
            warnings.warn(
                f"{folder} is on a disk that knows no locks ({error.strerror}): nothing keeps a "
                "second process out of it",
                stacklevel=3,
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def read(
    folder: str | Path,
    source: str | Path | None = None,
    name: str | None = None,
    sha256: str | None = None,
) -> Run:
    """Reads the folder of a run or of a release; see :func:`vae_lab.drawing.report.write`."""
    folder = Path(folder)
    own = Path(source or folder)
    release = own if is_release(own) else own / "release"
    card = _json(release / FILES[0])
    config = own / "config.yaml"
    if not card and not config.is_file():
        raise FileNotFoundError(
            f"{own} is neither a run nor a release: expected config.yaml or release/config.json"
        )
    if sha256 not in (None, card.get("sha256")):  # another checkpoint than the released one
        of_release = ("metrics", "test", "step")
        card = {k: v for k, v in card.items() if k not in of_release} | {"sha256": sha256}
    images = {path.stem: path for path in sorted((folder / "images").glob("*.png"))}
    return Run(
        folder=folder,
        name=name or folder.resolve().name,
        config=yaml.safe_load(config.read_text()) if config.is_file() else {},
        card=card,
        evaluation=_evaluation(folder / "evaluation.json", card),
        rows=metrics_of(own),
        commands=commands_of(own) or list(filter(None, [card.get("command")])),
        pictures=images,
        parameters=_parameters(release / FILES[1]),
    )


def commands_of(folder: Path) -> list[str]:
    """The commands that make a run again when they are typed one after the other."""
    file = folder / "commands.txt"
    return _repeatable(file.read_text().splitlines()) if file.is_file() else []


def keep_command(folder: Path, command: str) -> None:
    """Adds to `commands.txt` what was typed to begin a run, or to go on with it."""
    lines = _repeatable([*commands_of(folder), command])
    files.write(folder / "commands.txt", "".join(f"{line}\n" for line in lines).encode())


def _repeatable(typed: list[str]) -> list[str]:
    """Several commands work in one folder, which they all have to name."""
    lines = dict.fromkeys(line.replace("resume=RUN", f"resume={AGAIN}") for line in typed)
    if len(lines) > 1:
        return [line if AGAIN in line else f"{line} run_dir={AGAIN}" for line in lines]
    return list(lines)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _evaluation(path: Path, card: dict[str, Any]) -> dict[str, Any]:
    """The measurements of task=evaluate; none if they were made with other weights."""
    evaluation = _json(path)
    of_this = "sha256" not in card or evaluation.get("sha256") in (None, card["sha256"])
    return evaluation if of_this else {}


def metrics_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, as they are written there; none where it is not."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _parameters(weights: Path) -> int | None:
    """The numbers in a release's tensors, from the head of the file."""
    if not weights.is_file():
        return None
    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  not a dict
