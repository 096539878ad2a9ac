"""Releases: a trained VAE as data, `model.safetensors` and `config.json`, that never runs code.

`config.json` has the VAE's description (:mod:`vae_lab.description`) and what is known of it. The
checkpoints of train.py hold the same description, so that a model can be loaded from either.
"""

import hashlib
import itertools
import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..description import (
    KINDS,
    OPTIONAL,
    SINCE_2_IF_TRUE,
    assemble,
    check_described,
    describe,
    library_class,
    outline,
    shortened,
    undisturbed,
)
from . import sources
from .checkpoints import find_checkpoint, load_checkpoint
from .files import write_durably
from .sources import first_line, is_release, read_card

if TYPE_CHECKING:
    from ..vae import VAE

FORMATS = (1, 2)  # what vae_lab 0.1 reads, and what has any of these parts, classes or arguments
SINCE_2 = {
    *("Grid", "TemporalConv", "Transformer", "Codebook", "ResidualCodebook", "FSQ", "LFQ"),
    *("FlowGaussian", "CorrelatedGaussian", "HierarchicalGaussian"),
    *("Columns", "Laplace", "DiscretizedLogistic"),
}
CONFIG, WEIGHTS = sources.FILES

Part = Literal["encoder", "posterior", "decoder", "model"]

# The tensors of a part, and the kinds of pieces that give them their meaning.
PREFIXES: dict[Part, tuple[str, ...]] = {
    "encoder": ("encoder.",),
    "posterior": ("head.", "latent."),  # what else q is made of
    "decoder": ("decoder.", "output_bias", "likelihood."),
}
PREFIXES["model"] = (*itertools.chain(*PREFIXES.values()), "condition.")  # all but a prior
DECIDED_BY: dict[Part | None, tuple[str, ...]] = {
    "encoder": ("network",),
    "posterior": ("latent", "condition"),
    "decoder": ("network", "likelihood", "condition"),
    "model": ("network", "latent", "likelihood", "condition"),
    None: (*KINDS,),
}


class Model(NamedTuple):
    """A trained model as data, of which nothing is built yet."""

    origin: str  # where it was read, for messages
    blueprint: dict[str, Any]
    weights: dict[str, Tensor]


class Taken(NamedTuple):
    """The names of the tensors that one model can take over from another one, and of the rest."""

    taken: list[str]
    missing: list[str]  # here, but not there
    unused: list[str]  # there, but not here
    mismatched: list[str]  # what is how there and here

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unused or self.mismatched)

    def __str__(self) -> str:
        lists = zip(self._fields, self, strict=True)
        return "; ".join(f"{name}: {shortened(items)}" for name, items in lists if items)


def save(vae: "VAE", folder: Path, facts: dict[str, Any], dtype: torch.dtype | None = None) -> Path:
    """Writes a release; nothing is changed where it cannot be written whole, and loaded again."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a type of floats, e.g. torch.float16, got {dtype!r}")
    plan = check_described(vae)
    weights = _weights(vae, dtype)
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        where = "" if dtype is None else f" in {dtype}"
        raise ValueError(f"weights must be finite numbers, {shortened(bad)} are not{where}")
    data = safetensors.torch.save(weights)
    config = {"format": _format(plan), **plan, "sha256": hashlib.sha256(data).hexdigest()}
    if taken := config.keys() & facts.keys():
        raise ValueError(f"facts must not be named {', '.join(config)}, got {', '.join(taken)}")
    text = json.dumps(config | facts, indent=2) + "\n"  # fails, if it does, before a file changes
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        files = {WEIGHTS: data, CONFIG: text.encode()}
        for name, content in files.items():
            write_durably(Path(partial) / name, content)
        for name in files:  # a crash between the two is seen in the sha256
            (Path(partial) / name).replace(folder / name)
    return folder


def _format(plan: dict[str, Any]) -> int:
    """The oldest format whose readers know all of this."""
    parts = [part for part in plan.values() if isinstance(part, dict)]
    news = any(part["class"] in SINCE_2 or part.keys() & SINCE_2_IF_TRUE for part in parts)
    return FORMATS[bool(plan.keys() & OPTIONAL or news)]


def digest(vae: "VAE") -> str:
    """The SHA-256 that a release of these weights has on its card."""
    return hashlib.sha256(safetensors.torch.save(_weights(vae))).hexdigest()


def _weights(vae: "VAE", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    shared: set[int] = set()
    for name, tensor in vae.state_dict().items():
        kept = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        kept = kept.contiguous()
        place = kept.untyped_storage().data_ptr()
        found[name] = kept.clone() if place in shared else kept  # safetensors takes no shared one
        shared.add(place)
    return found


def load(cls: type["VAE"], source: str | Path, strict: bool = True) -> "VAE":
    """The model that `source` names, in evaluation mode, of the class :class:`vae_lab.VAE`.

    See :func:`vae_lab.storage.sources.resolve`.
    """
    device = torch.get_default_device()
    with undisturbed():
        model = _read(sources.resolve(source))
        report = matched(model.weights, outline(cls, model.blueprint, model.origin).state_dict())
        if strict and not report.complete:
            raise ValueError(
                f"{model.origin} does not describe its weights: {report._replace(taken=[])}; "
                "strict=False takes what fits"
            )
        if not report.complete:
            warnings.warn(f"{model.origin}, in part: {report}", stacklevel=3)
        vae = assemble(cls, model.blueprint, model.origin)
        vae.load_state_dict({name: model.weights[name] for name in report.taken}, strict=False)
        return vae.eval() if device.type in ("cpu", "meta") else vae.eval().to(device)


def take(vae: "VAE", source: str | Path, part: Part | None = None, strict: bool = True) -> Taken:
    """Loads the weights of another model, or one part of them, into `vae`.

    The encoder and the decoder may be those of a model with another latent.

    Args:
        part: "encoder", "posterior" (the head after it, and the latent with its own prior),
            "decoder", "model" for all but a prior of its own, or None for all.
        strict: refuse a source that does not fit in every tensor; otherwise take those that do.

    Returns:
        What was taken and what was not.

    Raises:
        ValueError: the two do not fit; nothing was changed.
    """
    if part not in (None, *PREFIXES):
        known = ", ".join(PREFIXES)
        raise ValueError(f"part must be {known} or None, got {part!r}")
    other = load(library_class(type(vae)), source)
    prefixes = PREFIXES[part] if part else ("",)
    theirs, ours = (
        {name: t for name, t in model.state_dict().items() if name.startswith(prefixes)}
        for model in (other, vae)
    )
    report = matched(theirs, ours)
    if part == "model":
        other.latent.learn_prior = vae.latent.learn_prior  # another prior takes its place
    pairs = [(kind, getattr(other, kind), getattr(vae, kind)) for kind in DECIDED_BY[part]]
    settings = [
        f"{kind} is {_described(there)} there and {_described(here)} here"
        for kind, there, here in pairs
        if there != here and _described(there) != _described(here)  # equal: they compute the same
    ]
    report = report._replace(mismatched=settings + report.mismatched)
    if not report.taken or strict and not report.complete:
        raise ValueError(
            f"the {part or 'model'} of {source} does not fit: {report._replace(taken=[])}; use the "
            "settings that it was trained with, or strict=False (init.strict=false) for what fits"
        )
    vae.load_state_dict({name: theirs[name] for name in report.taken}, strict=False)
    return report


def _described(part: object) -> dict[str, Any] | None:
    return None if part is None else describe(part)  # a prior that is the latent's own


def matched(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> Taken:
    """Matches `theirs` with `ours` by name and shape."""
    both = [name for name in ours if name in theirs]
    fits = {name: theirs[name].shape == ours[name].shape for name in both}
    return Taken(
        [name for name in both if fits[name]],
        [name for name in ours if name not in theirs],
        [name for name in theirs if name not in ours],
        [
            f"{name} is {list(theirs[name].shape)} there and {list(ours[name].shape)} here"
            for name in both
            if not fits[name]
        ],
    )


def _read(path: Path) -> Model:
    """A release; or a checkpoint, a run's best one where the run has no release."""
    if path.suffix == ".ckpt":
        return _read_checkpoint(path)
    if path.is_dir() and not is_release(path) and not is_release(path / "release"):
        try:
            return _read_checkpoint(find_checkpoint(path))
        except FileNotFoundError:
            pass  # the release is what it lacks
    release = release_of(path)
    return _read_release(release, path if path.is_file() else release / WEIGHTS)


def release_of(path: Path) -> Path:
    """The release's folder at `path`, which is it, or its weights, or a run's folder."""
    if path.suffix == ".safetensors" and path.is_file():
        return path.parent
    for folder in (path, path / "release"):
        if is_release(folder):
            return folder
    raise FileNotFoundError(
        f"no release at {path}: expected a folder with {CONFIG} and {WEIGHTS}, or a run with such "
        "a release/ (an archive must be unpacked first)"
    )


def _read_release(folder: Path, path: Path) -> Model:
    config = read_card(folder)
    if config.get("format") not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise ValueError(
            f"{folder}/{CONFIG} has format {config.get('format')!r}, this vae_lab reads {known}"
        )
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise ValueError(f"{path} does not match the sha256 in its {CONFIG}: fetch it again")
    try:
        return Model(str(folder / CONFIG), config, safetensors.torch.load(data))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {first_line(error)}") from None


def _read_checkpoint(path: Path) -> Model:
    checkpoint = load_checkpoint(path)
    plan, state = checkpoint.get("vae"), checkpoint.get("state_dict")
    if not isinstance(plan, dict) or not isinstance(state, dict):
        raise ValueError(f"{path} does not describe its model: give the release/ of its run")
    weights = {
        name.removeprefix("vae."): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and name.startswith("vae.")
    }
    return Model(str(path), plan, weights)
