"""A run's folder: what is in it, and who works in it.

runs/<name>/
    config.yaml         the resolved config
    commands.txt        what was typed: to begin the run, and to go on with it
    metrics.csv         a row a logged step
    checkpoints/        the last ones and the best one; see :mod:`vae_lab.checkpoints`
    images/             PNG pictures
    release/            model.safetensors, config.json
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def default_folder(model: str, data: str, root: Path = Path("runs")) -> Path:
    """A name for a new run that nobody has: date, time, model and data."""
    name = f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{model}-{data}"
    folder, count = root / name, 1
    while folder.exists():
        count += 1
        folder = root / f"{name}-{count}"
    return folder


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder, until this one leaves or dies.

    Raises:
        ValueError: the folder cannot be written in, or another process works there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise ValueError(
            f"run_dir must be a folder to write in, got {folder} ({error.strerror})"
        ) from None
    with file:
        try:
            # Of the process, not of the open file as flock's: workers that outlive it hold nothing.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}: wait for its "
                "end, or type another run_dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
