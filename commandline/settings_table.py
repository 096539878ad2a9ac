"""`python -m commandline.settings_table`: every setting with its default and meaning, in Markdown.

Made from the files in configs/, their comments, and the docstrings of the classes that they
name.
"""

import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from .places import CONFIGS, files
from .settings import GROUPS

OURS = ("vae_lab.", "models.", "datamodules.")
LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?: (?P<value>[^#]*?))?(?: *# (?P<comment>.*))?$")
ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.M)


class Setting(NamedTuple):
    name: str
    default: str
    meaning: str


def tables() -> str:
    """All of them, a section a group and a table a file."""
    parts = ["What is typed after `python train.py`, as `NAME=VALUE`.\n"]
    top = [s for s in leaves(CONFIGS / "train.yaml", "") if not s.name.startswith("hydra")]
    parts.append(f"## The run\n\n{_table(top)}")
    for group in [name for name, group in GROUPS.items() if group.own and choices(name)]:
        parts.append(f"## `{group}=`\n")
        for file in sorted((CONFIGS / group).glob("*.yaml")):
            parts.append(_section(file, group))
    return "\n".join(parts).rstrip("\n") + "\n"


def _section(file: Path, group: str) -> str:
    lines = file.read_text().splitlines()
    target = next((ln.partition(": ")[2] for ln in lines if ln.startswith("_target_")), None)
    target = target or ("models.base.VAEModule" if group == "model" else None)
    own = list(leaves(file, f"{group}.", target))
    head = f"### every `{group}`" if file.stem.startswith("_") else f"### `{group}={file.stem}`"
    said = [line[2:] for line in lines if line.startswith("# ")]
    said += [_first_sentence(target)] if target else []
    return "\n\n".join([head, *said, _table(own)] if own else [head, *said]) + "\n"


def _table(settings: list[Setting]) -> str:
    rows = [f"| `{s.name}` | {_code(s.default)} | {_cell(s.meaning)} |" for s in settings]
    return "\n".join(["| setting | default | |", "| --- | --- | --- |", *rows]) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def choices(group: str) -> list[str]:
    """The names that a group offers; none where there is no such group."""
    return [*files(group)]


def listed(names: Iterable[str]) -> str:
    """Names to choose from, as they are shown: of those in a folder only the folder's."""
    shown = (f"{name.partition('/')[0]}/..." if "/" in name else name for name in names)
    return ", ".join(dict.fromkeys(shown))


def leaves(file: Path, prefix: str, target: str | None = None) -> Iterator[Setting]:
    """The leaves of a YAML file, and the sections that somebody has explained."""
    tree = OmegaConf.load(file)
    path: list[tuple[int, str]] = []
    for line in file.read_text().splitlines():
        match = LINE.match(line)
        if not match or match["name"] in ("defaults", "_target_", "_partial_"):
            continue
        while path and path[-1][0] >= len(match["indent"]):
            path.pop()
        path.append((len(match["indent"]), match["name"]))
        names = [name for _, name in path]
        meaning = _meaning(tree, names, target) or match["comment"] or ""
        if match["value"] or meaning:
            yield Setting(prefix + ".".join(names), match["value"] or "", meaning)


def _meaning(tree: DictConfig, names: list[str], target: str | None) -> str:
    """The text about a setting in the docstring of the innermost class around it, or `target`."""
    for depth in range(len(names) - 1, 0, -1):
        inner = OmegaConf.select(tree, ".".join([*names[:depth], "_target_"]))
        if inner is not None:
            return _arguments(inner).get(names[depth], "")
    return _arguments(target).get(names[0], "") if target and len(names) == 1 else ""


@functools.cache
def _arguments(target: str) -> dict[str, str]:
    """The texts about a constructor's arguments in the docstrings of a class and of its bases."""
    if not target.startswith(OURS):
        return {}  # the files themselves explain what is other libraries'
    made = get_object(target)
    found: dict[str, str] = {}
    for cls in inspect.getmro(made) if inspect.isclass(made) else [made]:
        doc = inspect.cleandoc(cls.__doc__ or "")
        for block in re.findall(r"^(?:Args|Attributes):\n(.*?)(?:\n\n|\Z)", doc, re.S | re.M):
            for entry in ARGUMENT.finditer(block):
                found.setdefault(entry[1], _markdown(entry[2]))
    return found


def _first_sentence(target: str) -> str:
    if not target.startswith(OURS):
        return f"`{target}`"
    doc = inspect.getdoc(get_object(target)) or ""
    return _markdown(doc.partition("\n\n")[0])


def _markdown(text: str) -> str:
    """A docstring's reStructuredText, as far as one line of it goes."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", " ".join(text.split()))
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`").removesuffix(".")


if __name__ == "__main__":
    print(tables())
