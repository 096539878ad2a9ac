"""The folders of the project and of its YAML files, and one's own folder beside them."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
OWN: list[Path] = []  # what --config-dir names: groups of files like those in configs/, and classes


def add_own(folder: Path) -> None:
    """Makes a folder's files known, and its classes to this process and to those that it starts."""
    OWN[:] = [folder]
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        known = filter(None, [os.environ.get("PYTHONPATH"), str(folder)])
        os.environ["PYTHONPATH"] = os.pathsep.join(known)


def files(group: str) -> dict[str, Path]:
    """The files of a group by the names that are typed, in their order; one in a folder of the
    group's is FOLDER/NAME. The project's own have the say."""
    found: dict[str, Path] = {}
    for folder in (CONFIGS / group, *(own / group for own in OWN)):
        for path in folder.rglob("*.yaml"):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return {name: found[name] for name in sorted(found) if not found[name].stem.startswith("_")}
