"""Quotes settings so that the shell and Hydra read them as they are meant."""

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from .own import with_plus
from .settings import NAMING_PLACES

OF_SEVERAL = {"task=evaluate", "task=report"}  # models side by side
SEVERAL = re.compile(r"checkpoint=[^'\"()\[\]{}]+,[^'\"()\[\]{}]*")
PLAIN = re.compile(r"[^'\"()\[\]{}\\]*")
BELOW_HOME = re.compile(r"(?<=[=,])~[^,]*")
HOME = re.compile(r"(?:^|(?<=,)|(?<=, ))~(?=[/,]|$)")


def as_meant(arguments: list[str]) -> list[str]:
    """The arguments, quoted where Hydra would not read them as meant: a path that begins with `~`,
    and `checkpoint=A,B` where a task takes several models, which unquoted would be a sweep. The
    settings of a class that is typed have a plus."""
    arguments = with_plus(arguments)
    one_run = not {"-m", "--multirun"}.intersection(arguments)
    several = one_run and bool(OF_SEVERAL.intersection(arguments))
    return [_quoted(text, several) for text in arguments]


def _quoted(text: str, several: bool) -> str:
    if several and SEVERAL.fullmatch(text):
        return f"checkpoint='{text.partition('=')[2]}'"
    return BELOW_HOME.sub(r"'\g<0>'", text) if PLAIN.fullmatch(text) else text


def as_typed(key: str, value: str) -> str:
    """KEY=VALUE to be copied into a shell, quoted where the shell or Hydra needs it."""
    return shlex.quote(as_override(key, value))


def as_override(key: str, value: str) -> str:
    """KEY=VALUE as Hydra reads it, quoted where it needs that."""
    text = f"{key}={value}"
    try:
        plain = OverridesParser.create().parse_override(text).value() == value
    except HydraException:
        plain = False
    escaped = value.replace('"', r"\"")
    return text if plain else f'{key}="{escaped}"'


def expand_home(config: DictConfig) -> None:
    """Puts the home folder in the place of `~` in the paths of the run, each of several too."""
    for key in NAMING_PLACES:  # those of the pieces are read by the pieces
        if config.get(key) is not None:
            config[key] = HOME.sub(lambda _: str(Path.home()), config[key])
