"""The curves of runs, as the script of a report draws them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..figures import CURVES, SCHEDULES, series, window
from ..storage.runs import Run

POINTS = 1000  # of a curve
TERMS = ("ELBO", "relaxed ELBO", "reconstruction", "KL")

# What a page shows beside the curves of the figures.
PANELS = {
    **CURVES,
    "relaxed ELBO": ["val/elbo_relaxed"],
    "active units": ["val/active_units"],
    "code perplexity": ["val/code_perplexity"],
    "gradient SNR": ["gradient/snr"],
    "images a second": ["perf/images_per_second"],
}
# What two runs are compared by: one curve of each.
COMPARED = {
    "ELBO, validation": "val/elbo",
    "ELBO, training": "train/elbo",
    "reconstruction, validation": "val/reconstruction",
    "KL, validation": "val/kl",
    **{title: names[0] for title, names in SCHEDULES.items()},
    "images a second": "perf/images_per_second",
}


class Charts(NamedTuple):
    """The panels of a page."""

    terms: list[dict[str, Any]]  # the objective and its terms
    others: list[dict[str, Any]]
    constant: dict[str, str]  # what never changed, which is no curve to look at


def of_run(run: Run) -> Charts:
    """Charts of the metrics that were logged in a run, one panel for each quantity."""
    charts = []
    for title, names in PANELS.items():
        curves = {name.partition("/")[0]: series(run.rows, name) for name in names}
        charts += _chart(title, curves if len(names) > 1 else {title: series(run.rows, names[0])})
    return _sorted(charts)


def of_several(runs: Sequence[Run]) -> Charts:
    """One curve of each run in every panel."""
    charts = []
    for title, name in COMPARED.items():
        charts += _chart(title, {run.name: series(run.rows, name) for run in runs})
    return _sorted(charts)


def _sorted(charts: Iterable[dict[str, Any]]) -> Charts:
    found = Charts([], [], {})
    for chart in charts:
        if chart["title"].partition(",")[0] in TERMS:
            found.terms.append(chart)
        elif flat := _constants(chart["curves"]):
            found.constant[chart["title"]] = flat
        else:
            found.others.append(chart)
    return found


def _constants(curves: Sequence[Mapping[str, Any]]) -> str:
    """The value of every curve, where each has a single one; otherwise nothing."""
    values = {c["name"]: {v for v in c["values"] if v is not None} for c in curves}
    if any(len(own) > 1 for own in values.values()):
        return ""
    shown = {name: number(*own) for name, own in values.items()}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{value} ({name})" for name, value in shown.items())


def _chart(title: str, curves: Mapping[str, tuple[list[int], list[float]]]) -> list[dict[str, Any]]:
    """One panel, as its script takes it: a common axis, and every curve on it. None for no data."""
    thinned = {name: thin(*curve) for name, curve in curves.items()}
    points = {name: dict(zip(*curve, strict=True)) for name, curve in thinned.items()}
    steps = sorted({step for own in points.values() for step in own})
    if not steps:
        return []
    low, high = window([value for _, values in curves.values() for value in values])
    said = [
        f"{name} from {number(y[0])} at step {x[0]} to {number(y[-1])} at step {x[-1]}"
        for name, (x, y) in thinned.items()
        if x
    ]
    return [
        {
            "title": title,
            "steps": steps,
            "low": low,
            "high": high,
            "curves": [
                {"name": name, "index": index, "values": [own.get(step) for step in steps]}
                for index, (name, own) in enumerate(points.items())
                if own
            ],
            "text": f"{title} against the step: " + "; ".join(said),
        }
    ]


def thin(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """At most some POINTS of a curve, the last one among them; no NaN, which JSON cannot have."""
    kept = [(s, float(f"{v:.6g}")) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    every = math.ceil(len(kept) / POINTS) or 1
    kept = kept[::-every][::-1]
    return [step for step, _ in kept], [value for _, value in kept]


def number(value: float | None, error: float | None = None) -> str:
    """A number to be read, with its standard error."""
    if value is None:
        return "none"
    shown = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
    if math.isfinite(value) and not float(value).is_integer() and abs(value) >= 1:
        shown = f"{value:,.2f}"
    return shown if error is None else f"{shown} \N{PLUS-MINUS SIGN} {error:.2g}"
