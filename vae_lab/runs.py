"""A run's folder: what is in it, and how later runs find it.

runs/<name>/
    config.yaml         the resolved config
    metrics.csv         a row a logged step
    checkpoints/        last.ckpt, best.ckpt
    images/             PNG pictures
    release/            model.safetensors, config.json
"""

import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from .pretrained import describe, load
from .vae import VAE

PARTS = {
    "encoder": ("encoder.",),
    "decoder": ("decoder.", "output_bias", "likelihood."),
}

# What torch.load raises, depending on where in the file the damage is.
BROKEN = (
    RuntimeError,
    EOFError,
    LookupError,
    AssertionError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def default_folder(model: str, data: str, root: Path = Path("runs")) -> Path:
    """A name for a new run that nobody has: date, time, model and data."""
    name = f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{model}-{data}"
    folder, count = root / name, 1
    while folder.exists():
        count += 1
        folder = root / f"{name}-{count}"
    return folder


def find_checkpoint(source: str | Path, names: tuple[str, ...] = ("best", "last")) -> Path:
    """The checkpoint file that `source` is, or the first of `names` that a run's folder has."""
    source = Path(source)
    candidates = [source / "checkpoints" / f"{name}.ckpt" for name in names]
    for path in candidates if source.is_dir() else [source]:
        if path.is_file():
            return path
    wanted = " or ".join(f"checkpoints/{path.name}" for path in candidates)
    raise FileNotFoundError(
        f"no checkpoint at {source}: expected a .ckpt file, or a run with {wanted}"
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents: tensors and plain types; anything else in it is refused, not run."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path} is not a readable checkpoint ({reason[0] if reason else 'empty file'})"
        ) from None
    if not isinstance(checkpoint, dict) or "config" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of train.py: it holds no config")
    return checkpoint


def take_part(vae: VAE, part: str, source: str | Path) -> list[str]:
    """Loads the encoder or decoder of a released model into `vae`, whatever either's latent.

    Returns:
        The names of the tensors that were taken.

    Raises:
        ValueError: the two do not have the same tensors of the same shapes.
    """
    other = load(Path(source))
    theirs, ours = (
        {name: t for name, t in model.state_dict().items() if name.startswith(PARTS[part])}
        for model in (other, vae)
    )
    kinds = ("network",) if part == "encoder" else ("network", "likelihood")
    there, here = ([describe(getattr(model, kind)) for kind in kinds] for model in (other, vae))
    differences = [f"it is {there} there and {here} here"] if there != here else []
    differences += [
        f"{name} is {_shape(theirs, name)} there and {_shape(ours, name)} here"
        for name in sorted(theirs.keys() | ours.keys())
        if _shape(theirs, name) != _shape(ours, name)
    ]
    if differences:
        shown = "; ".join(differences[:5])
        raise ValueError(
            f"the {part} of {source} does not fit: {shown} ({len(differences)} differ); "
            "use the network, likelihood and latent sizes that it was trained with"
        )
    vae.load_state_dict(theirs, strict=False)
    return sorted(theirs)


def _shape(tensors: dict[str, torch.Tensor], name: str) -> list[int] | str:
    return list(tensors[name].shape) if name in tensors else "absent"
