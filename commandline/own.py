"""Classes of one's own that are typed, `data._target_=package.Class`, and --config-dir.

Hydra adds no setting that a file does not list, unless there is a plus sign before it. A class that
is typed has no file, so here its settings get theirs.
"""

import re
from pathlib import Path

from .arguments import arguments_of
from .places import add_own

CLASSES = (
    "data",
    "data.dataset",
    "data.val_dataset",
    "data.test_dataset",
)
TYPED = re.compile(rf"({'|'.join(map(re.escape, CLASSES))})\._target_=(.*)", re.S)
PLUS = "++"
NO_FILE = "data=_own"
NO_SEED = "~data.seed"
FLAG = "--config-dir"


def with_own_folder(arguments: list[str]) -> list[str]:
    """The arguments, with what is typed as --config-dir made known, whole, and the first of them.

    Raises:
        ValueError: it is no folder.
    """
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in (FLAG, "-cd"):
            continue
        rest = arguments[at + 1 :]
        if not equals:
            value, rest = "".join(rest[:1]), rest[1:]
        folder = Path(value).expanduser().absolute()
        if not value or not folder.is_dir():
            raise ValueError(f"{FLAG} must be a folder with files like configs/, got {value!r}")
        add_own(folder)
        return [FLAG, str(folder), *arguments[:at], *rest]
    return arguments


def with_plus(arguments: list[str]) -> list[str]:
    """The arguments with a plus before each setting of a class that is typed."""
    classes = _classes(arguments)
    found = [PLUS + a if _below(a, classes) else a for a in arguments]
    if "data" in classes and not any(a.startswith("data=") for a in arguments):
        found.append(NO_FILE)
        if not _takes_seed(classes["data"]):
            found.append(NO_SEED)
    return found


def without_plus(arguments: list[str]) -> list[str]:
    """The arguments as they were typed."""
    plain = [a.removeprefix(PLUS) for a in arguments]
    classes = _classes(plain)
    pairs = zip(arguments, plain, strict=True)
    found = [p if _below(p, classes) else a for a, p in pairs]
    return [a for a in found if a not in (NO_FILE, NO_SEED)]


def _classes(arguments: list[str]) -> dict[str, str]:
    """The classes that are typed, by what they are."""
    return dict(found.groups() for a in arguments if (found := TYPED.fullmatch(a)))


def _below(argument: str, classes: dict[str, str]) -> bool:
    return any(argument.startswith(f"{name}.") for name in classes)


def _takes_seed(target: str) -> bool:
    try:
        return "seed" in arguments_of(target)
    except Exception:  # there is no such class, which is said where it is looked for
        return False
