"""The file of a training: what it needs to go on exactly, and what it was asked to do."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..description import blueprint
from ..storage.checkpoints import read_checkpoint, write_checkpoint
from .examples import Examples
from .training import Training

SAVE_SECONDS = 600.0
WRITER = "vae_lab.fit"
HASHED = 1000  # data, evenly spaced


class File:
    """Saves a training now and then, and goes on with what was saved.

    Args:
        path: of the file; None: nothing is saved.
        settings: all that decides what is trained, in plain types.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = settings
        self.saved_at = time.monotonic()

    def restore(self, training: Training) -> None:
        """Goes on with the file, if there is one.

        Raises:
            ValueError: it is another kind of file, or was written with other settings.
        """
        if self.path is None or not self.path.exists():
            return
        content = read_checkpoint(self.path)
        if not isinstance(content, dict) or WRITER not in content:
            raise ValueError(f"{self.path} is no file of {WRITER}: name another one")
        before = content["config"]
        names = [n for n in self.settings | before if self.settings.get(n) != before.get(n)]
        later = {"patience"} if self.settings["lr_decay"] == "cosine" else {"patience", "epochs"}
        if names := [n for n in names if n not in later]:  # what decides the end only
            changes = (f"{n} {before.get(n)!r} -> {self.settings.get(n)!r}" for n in names)
            raise ValueError(
                f"{self.path} was trained with other settings: {', '.join(changes)}; leave them as "
                "they were, or name another file"
            )
        training.load_state_dict(content[WRITER])

    def save_if_due(self, training: Training) -> None:
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save(training)

    def save(self, training: Training) -> None:
        """Writes a checkpoint, from which VAE.from_pretrained reads the best model so far."""
        if self.path is None:
            return
        training.look()
        content = {
            "config": self.settings,
            "vae": blueprint(training.vae),
            "state_dict": {f"vae.{name}": w for name, w in training.weights.items()},
            WRITER: training.state_dict(),
        }
        write_checkpoint(content, self.path, "name a file in a folder to write in")
        self.saved_at = time.monotonic()


def settings_of(training: Training, x: Examples, val: Examples | None) -> dict[str, Any]:
    """All that decides what is trained, in plain types."""
    plan, vae = training.plan, training.vae
    parts = {"estimator": repr(training.estimator), "objective": repr(training.objective)}
    numbers = asdict(plan) | {"lr_decay": str(plan.lr_decay)}
    numbers["batch_size"] = training.train.batch_size
    data = {"x": _fingerprint(x), "val": _fingerprint(val)}
    return blueprint(vae) | parts | numbers | {"machine": _machine(vae.device)} | data


def _fingerprint(data: Examples | None) -> str | None:
    """Tells data from other data, by some of them."""
    if data is None:
        return None
    some = data.subset(slice(None, None, -(-len(data.stored) // HASHED)))
    digest = hashlib.sha256()
    for tensor in (some.stored, some.labels):
        digest.update(tensor.contiguous().numpy().tobytes())
    return f"{list(data.stored.shape)} {digest.hexdigest()[:12]}"


def _machine(device: torch.device) -> str:
    """On what the last bits depend."""
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
