"""Folders that hold data, and what is said of them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = Path("~/.cache/vae_lab")  # without a home only an error for those who need it


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it, also where links lead, but not back up."""
    for name, folders, files in os.walk(folder, followlinks=True):
        place = Path(name)
        above = {path.resolve() for path in (place, *place.parents)}
        folders[:] = [inner for inner in folders if (place / inner).resolve() not in above]
        yield from (place / file for file in files)


@contextmanager
def all_or_nothing(*places: Path) -> Iterator[None]:
    """Files and folders that were not there before are removed if what makes them fails, and so
    are the folders around them."""
    new = [place for place in places if not place.exists()]
    around = {above for place in new for above in place.parents if not above.exists()}
    try:
        yield
    except BaseException:  # Ctrl-C too leaves half a file
        with suppress(OSError):  # the first error is the one to read
            for place in new:
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            for folder in sorted(around, reverse=True):  # what is inside comes after what is around
                folder.rmdir()
        raise


def contents(folder: Path) -> str:
    """The text about a folder in an error message that misses files in it."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    return f"{folder} holds {sum(path.is_file() for path in files_below(folder))} files"


def one_line(error: Exception) -> str:
    """An error's message without line breaks: torchvision's have several lines."""
    return " ".join(str(error).split())
