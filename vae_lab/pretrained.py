"""Releases: a trained VAE as data, `model.safetensors` and `config.json`, that never runs code.

`config.json` names the VAE's parts by their class in vae_lab and gives their constructors'
arguments. Only the classes that the three packages export can be named.
"""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import safetensors.torch

from . import latents, likelihoods, networks
from .vae import VAE

FORMAT = 1
PARTS = {"network": networks, "latent": latents, "likelihood": likelihoods}


def describe(part: object) -> dict[str, Any]:
    """A part's class and constructor arguments, each kept by the part under its own name."""
    names = inspect.signature(type(part)).parameters
    return {"class": type(part).__name__} | {name: getattr(part, name) for name in names}


def build(kind: str, description: dict[str, Any]) -> Any:
    """The part that :func:`describe` described."""
    arguments = dict(description)
    name = arguments.pop("class", None)
    package = PARTS[kind]
    if name not in package.__all__:
        known = ", ".join(package.__all__)
        raise ValueError(f"unknown {kind} {name!r} in config.json; known: {known}")
    try:
        return getattr(package, name)(**arguments)
    except TypeError as error:
        raise ValueError(f"the {kind} in config.json does not fit this vae_lab: {error}") from None


def save(vae: VAE, folder: Path, facts: dict[str, Any]) -> Path:
    weights = safetensors.torch.save({k: v.contiguous() for k, v in vae.state_dict().items()})
    config = {
        "format": FORMAT,
        "shape": list(vae.shape),
        **{kind: describe(getattr(vae, kind)) for kind in PARTS},
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    if taken := config.keys() & facts.keys():
        raise ValueError(f"facts must not be named {', '.join(config)}, got {', '.join(taken)}")
    text = json.dumps(config | facts, indent=2) + "\n"  # fails, if it does, before a file changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(text)
    return folder


def load(source: Path) -> VAE:
    folder = find(source)
    config = json.loads((folder / "config.json").read_text())
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder}/config.json has format {config.get('format')!r}, this vae_lab reads {FORMAT}"
        )
    if missing := {"shape", "sha256", *PARTS} - config.keys():
        raise ValueError(f"{folder}/config.json lacks {', '.join(sorted(missing))}")
    weights = (folder / "model.safetensors").read_bytes()
    if hashlib.sha256(weights).hexdigest() != config["sha256"]:
        raise ValueError(f"{folder}/model.safetensors does not match the sha256 in its config.json")
    parts = {kind: build(kind, config[kind]) for kind in PARTS}
    vae = VAE(tuple(config["shape"]), **parts)
    vae.load_state_dict(safetensors.torch.load(weights))
    return vae.eval()


def find(source: Path) -> Path:
    """The release folder at `source`, or in a run's folder there."""
    for folder in (source, source / "release"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise FileNotFoundError(
        f"no release at {source}: expected config.json and model.safetensors there, or in release/"
    )
