"""The results of an evaluation: metrics with their errors, lists over the latents, diagnoses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .diagnosis import Diagnosis

FORMAT = 1


class Metric(NamedTuple):
    """A number, with what is needed to believe it.

    Attributes:
        standard_error: over the images, or over what it was estimated from; None where it has none.
        unit: "nats", "bits"; empty for a pure number.
        note: how it was measured.
    """

    value: float
    standard_error: float | None = None
    unit: str = ""
    note: str = ""

    def __str__(self) -> str:
        """With two digits of the standard error."""
        error = self.standard_error
        if not error or not math.isfinite(error) or error < 1e-9 * abs(self.value):  # of rounding
            return f"{self.value:.4g} {self.unit}".rstrip()
        places = max(1 - math.floor(math.log10(error)), 0)
        number = f"{self.value:.{places}f} +- {error:.{places}f}"
        return f"{number} {self.unit}".rstrip()


@dataclass
class Evaluation:
    """The result of :func:`vae_lab.evaluation.evaluate`.

    Attributes:
        metrics: by name.
        per_latent: lists of L numbers: `kl`, `marginal_kl`, `activity` (the variance of the
            posterior's mean) and, of codes, `perplexity`. On a grid L is that of a place: sums over
            the places of the KLs, means of the rest.
        per_place: of a grid, h rows of w numbers: sums of these KLs over the variables of a place.
        diagnosis: what was looked at, the worst first.
        images: how many there were.
        seed: of all noise.
        seconds: that it took.
        left_out: what is not measured of such data, and why.
        pictures: images by the name of a picture, [rows, columns, C, H, W].
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    per_latent: dict[str, list[float]] = field(default_factory=dict)
    per_place: dict[str, list[list[float]]] = field(default_factory=dict)
    diagnosis: list[Diagnosis] = field(default_factory=list)
    images: int = 0
    seed: int = 0
    seconds: float = 0.0
    left_out: list[str] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def rows(self) -> list[tuple[str, str, str]]:
        """A row for every metric: its name, its value with error and unit, and its note."""
        return [(name, str(metric), metric.note) for name, metric in self.metrics.items()]

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types; a number that is not finite is None, as JSON has no other."""
        return plain(
            {
                "format": FORMAT,
                "images": self.images,
                "seed": self.seed,
                "seconds": round(self.seconds, 1),
                "metrics": {name: metric._asdict() for name, metric in self.metrics.items()},
                "per_latent": self.per_latent,
                "per_place": self.per_place,
                "left_out": self.left_out,
                "diagnosis": [found._asdict() for found in self.diagnosis],
            }
        )


def plain(node: Any) -> Any:
    """Nested mappings and sequences as JSON can hold them."""
    if isinstance(node, Mapping):
        return {name: plain(child) for name, child in node.items()}
    if isinstance(node, list | tuple):
        return [plain(child) for child in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
