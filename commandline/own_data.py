"""Settings of the data that a run was trained on, which can be typed with its checkpoint alone:

python train.py task=evaluate checkpoint=runs/NAME data.test=FILE
"""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from .own import CLASSES
from .places import files
from .quoting import HOME, as_meant, as_override

ONE = re.compile(r"checkpoint=(['\"]?)([^'\",]+)\1")


def with_own_data(arguments: list[str]) -> list[str]:
    """The arguments as :func:`.as_meant`; where they have settings of the data and a run that is
    read, but no data, also with the run's choice of data, and with what that has no default for."""
    typed = [a.lstrip("+~") for a in arguments]
    chosen = any(a.startswith(("data=", "experiment=", f"{CLASSES[0]}._target_=")) for a in typed)
    keys = {a.partition("=")[0] for a in typed if a.startswith("data.")}
    one = next(filter(None, map(ONE.fullmatch, typed)), None)
    saved = None if one is None or chosen or not keys else _data_of(one[2])
    return as_meant([*arguments, *([] if saved is None else _choice(saved, keys))])


def _choice(saved: dict[str, Any], keys: set[str]) -> list[str]:
    """The file whose class a run's data has, and the settings that it leaves open."""
    for name, path in files("data").items():
        listed = OmegaConf.load(path)
        if listed.get("_target_") != saved.get("_target_"):
            continue
        opened = [str(key) for key in listed if OmegaConf.is_missing(listed, key)]
        values = {f"data.{key}": saved[key] for key in opened if isinstance(saved.get(key), str)}
        given = [as_override(key, value) for key, value in values.items() if key not in keys]
        return [f"data={name}", *given]
    return []


def _data_of(source: str) -> dict[str, Any] | None:
    """The settings of a run's data, from its folder or from that of one of its files; None where
    there is none, which is said elsewhere."""
    path = Path(HOME.sub(lambda _: str(Path.home()), source))
    for folder in (path, path.parent, path.parent.parent):
        try:
            found = yaml.safe_load((folder / "config.yaml").read_text())["data"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        return found if isinstance(found, dict) else None
    return None
