"""Releases by their source: the model, the card, and the way to others."""

from pathlib import Path
from typing import Any

from .description import blueprint as blueprint
from .description import relaxation as relaxation
from .storage import sources
from .storage.releases import digest as digest
from .storage.releases import release_of
from .vae import VAE

load = VAE.from_pretrained


def card(source: str | Path) -> dict[str, Any]:
    """The card of a release, which is its `config.json`."""
    return sources.read_card(release_of(sources.resolve(source)))


def push(source: str | Path, destination: str) -> str:
    """Uploads a release as it is, with its card.

    Args:
        source: of the release; see :func:`vae_lab.storage.sources.resolve`.
        destination: `hf:owner/name` or `wandb:entity/project/artifact`; made where it is new.

    Returns:
        The source that loads what was uploaded.
    """
    load(source)  # what cannot be loaded here is not given to others
    return sources.push(release_of(sources.resolve(source)), destination)
