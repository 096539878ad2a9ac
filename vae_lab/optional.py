"""Packages that only parts of the library need."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str, who: str) -> Iterator[None]:
    """Around imports of what an extra installs: where it is missing, one line says what to type.

    Args:
        extra: of pyproject.toml.
        who: the module that needs it, as `__name__`.

    Raises:
        ImportError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise ImportError(
            f"{who} needs {missing}, which is not installed: type pip install -e '.[{extra}]'",
            name=missing,
        ) from None
