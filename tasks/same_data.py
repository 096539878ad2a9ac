"""Finds out if several models were measured on the same images, so that their nats compare."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from commandline.settings import below

from .trained import Trained

# Settings that leave the test images as they are, but for the draw of their noise.
WITHOUT = [name for name, row in below("data").items() if not row.decides_images]


def measured_on(loaded: Trained) -> dict[str, str]:
    """The data, all that decides what its test images are, and the likelihood of their pixels."""
    data = loaded.datamodule
    known = dataclasses.fields(data) if dataclasses.is_dataclass(data) else ()
    settings = {f.name: getattr(data, f.name) for f in known if f.name not in WITHOUT}
    if "test_size" not in settings:  # the test split is what it is
        settings.pop("split_seed", None)
    if getattr(type(data), "root", "") is None:  # by default: wherever it lies, it is the same
        settings.pop("root", None)
    if isinstance(root := settings.get("root"), str) and Path(root).expanduser().exists():
        settings["root"] = Path(root).expanduser().resolve()  # however it was typed
    name, likelihood = type(data).__name__, type(loaded.vae.likelihood).__name__
    return {"data": name, **{n: str(v) for n, v in settings.items()}, "likelihood": likelihood}


def differences(measured: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Each fact that differs between the models: its name, and its value for every model."""
    for name in dict.fromkeys(name for one in measured for name in one):
        values = [one.get(name, "") for one in measured]
        if len(set(values)) > 1:
            yield name, values
