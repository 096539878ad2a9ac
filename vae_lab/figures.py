"""Figures of numbers, with matplotlib: colour-blind safe, one line style a method."""

import io
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from .optional import needs
from .storage import files

with needs("train", __name__):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe & Ito's palette, told apart with any colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
STYLES = ["-", "--", "-.", ":"]
DPI = 120

# What a run's curves show, by the names in its metrics.csv; those of one panel on one axis.
SCHEDULES = {"temperature": ["train/temperature"], "beta": ["train/beta"], "learning rate": ["lr"]}
CURVES = {
    "ELBO": ["train/elbo", "val/elbo"],
    "reconstruction": ["train/reconstruction", "val/reconstruction"],
    "KL": ["train/kl", "val/kl"],
    **SCHEDULES,
}


def style(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th line."""
    dash = STYLES[index // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dash}


def panels(count: int, height: float = 3.2, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of that height, drawn without a screen."""
    columns = count // rows
    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        plain(axis)
    return figure, list(axes)


def plain(axis: Axes) -> None:
    """Without a frame, on a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def write(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG."""
    files.write(path, content(figure))


def content(figure: Figure) -> bytes:
    """A figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
    return file.getvalue()


def png(name: str) -> Callable[[str], Path]:
    """For argparse: what is typed is a folder for a picture of this name, or a file.png."""

    def typed(text: str) -> Path:
        path = Path(text).expanduser()
        path = path if path.suffix == ".png" and not path.is_dir() else path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentTypeError(
                f"must be a folder or a file.png, got {text} ({error.strerror})"
            ) from None
        return path

    return typed


def series(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """The steps at which a metric was logged, and its values, from the rows of a metrics.csv."""
    kept = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in kept], [value for _, value in kept]


def training(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """The ELBO and its terms against the step, and under them, on the same axis, the schedules that
    change.

    Args:
        rows: of a metrics.csv.
        path: the PNG to write.
    """
    curves = {title: [n for n in names if series(rows, n)[0]] for title, names in CURVES.items()}
    constant = {t for t in SCHEDULES if len({v for n in curves[t] for v in series(rows, n)[1]}) < 2}
    curves = {title: names for title, names in curves.items() if names and title not in constant}
    if not curves:
        return
    heights = [1.0 if title in SCHEDULES else 2.2 for title in curves]
    figure = Figure(figsize=(7, sum(heights) + 0.8), layout="constrained", dpi=DPI)
    ratios = {"height_ratios": heights}
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    for axis, (title, names) in zip(axes, curves.items(), strict=True):
        plain(axis)
        for index, name in enumerate(names):
            steps, values = series(rows, name)
            mark = "o" if len(steps) < 3 else ""  # a line of one point cannot be seen
            label = name.partition("/")[0]
            axis.plot(steps, values, marker=mark, markersize=4, **style(index), label=label)
        axis.set_ylabel(title)
        if title not in SCHEDULES:
            axis.set_ylim(window([value for name in names for value in series(rows, name)[1]]))
    axes[0].legend(frameon=False, loc="lower right")
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(axes)
    write(figure, path)


def window(values: Sequence[float]) -> tuple[float, float]:
    """A range that leaves out the first steps, beside which all that follows would be a flat line.

    Of many values it holds the middle 94% and those near to them; of few, all.
    """
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return 0.0, 1.0
    low, high = np.quantile(finite, [0.03, 0.97] if len(finite) >= 20 else [0, 1])
    margin = 0.25 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = max(low - margin, finite.min()), min(high + margin, finite.max())
    return float(low - 0.1 * margin), float(high + 0.1 * margin)


def gradients(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Bias, variance, SNR and cosine against the step, from the rows of a metrics.csv."""
    rows = [row for row in rows if row.get("gradient/variance")]
    if not rows:
        return
    figure, axes = panels(4, rows=2)
    steps = [int(row["step"]) for row in rows]
    for axis, name in zip(axes, ("bias", "variance", "snr", "cosine"), strict=True):
        axis.plot(steps, [float(row[f"gradient/{name}"]) for row in rows], **style(0), label=name)
        axis.set(xlabel="step", title=name, yscale="linear" if name == "cosine" else "log")
    noise = [float(row["gradient/bias_noise"]) for row in rows]
    axes[0].plot(steps, noise, **style(8 + 7), label="what no bias would show")
    axes[0].legend(frameon=False)
    write(figure, path)


def comparison(
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    path: Path,
) -> None:
    """Estimators beside each other: bias, variance and cost, and how the ELBO rose with each.

    Args:
        rows: `estimator`, `bias`, `bias_noise`, `variance` and `seconds` of each; where they have
            trained also `test_elbo`, `lowest` and `highest`, its mean and range over the seeds.
        curves: for each estimator, runs (seeds) of points with `step`, `seconds` and `elbo`.
    """
    titles = {"bias": "bias, relative", "variance": "variance", "seconds": "seconds a step"}
    if trained := all("test_elbo" in row for row in rows):
        titles["test_elbo"] = "test ELBO"
    count, height = len(titles) + (2 if curves else 0), 1.4 + 0.22 * max(len(rows), 10)
    figure, axes = panels(count, height, rows=2 if trained and curves else 1)
    for axis, (key, title) in zip(axes, titles.items(), strict=False):
        _dots(axis, rows, key)
        axis.set_title(title)
    for axis in axes[1:3]:
        axis.set_yticklabels([])
    for axis, key in zip(axes[len(titles) :], ("step", "seconds") if curves else (), strict=True):
        for index, (name, runs) in enumerate(curves.items()):
            _band(axis, runs, key, name, index)
        axis.set(title="validation ELBO", xlabel="training seconds" if key == "seconds" else key)
    if curves:
        axes[-1].legend(frameon=False, fontsize="small", loc="lower right")
    write(figure, path)


def variances(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: Path) -> None:
    """The variance of the encoder's gradient against the step, on a logarithmic axis.

    Args:
        curves: for each estimator, runs (seeds) of points with `step` and `variance`, of which the
            geometric mean is drawn.
        path: the PNG to write.
    """
    figure = Figure(figsize=(7, 4), layout="constrained", dpi=DPI)
    axis = figure.subplots()
    plain(axis)
    for index, (name, runs) in enumerate(curves.items()):
        points = list(zip(*runs, strict=False))
        steps = [point[0]["step"] for point in points]
        values = [geometric_mean(each["variance"] for each in point) for point in points]
        axis.plot(steps, values, **style(index), label=name)
    axis.set(yscale="log", xlabel="step", ylabel="variance of the encoder's gradient")
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    write(figure, path)


def _dots(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """A row's value as a dot with its number; on a logarithmic axis where none is negative, of
    which the left end is 0."""
    places, values = range(len(rows)), [float(row[key]) for row in rows]
    positive = [value for value in values if value > 0]
    logs = bool(positive) and min(values) >= 0
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        colour = style(place)["color"]
        at = max(value, min(positive) / 3) if logs else value
        axis.plot(at, place, "o" if at == value else "<", color=colour)
        if key == "test_elbo":
            axis.hlines(place, row["lowest"], row["highest"], color=colour)
        number = f"{value:.1f}" if key == "test_elbo" else f"{float(f'{value:.2g}'):g}"
        axis.annotate(number, (at, place), (0, 5), textcoords="offset points", fontsize=7)
    if key == "bias":
        noise = [float(row["bias_noise"]) for row in rows]
        axis.plot(noise, places, "k|", markersize=9, label="the noise: no bias can be seen below")
        axis.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1))
    axis.set_yticks(places, [row["estimator"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.7)  # the first on top
    axis.margins(x=0.12)
    if logs:
        logarithmic(axis)


def logarithmic(axis: Axes) -> None:
    """Across, with so many numbers on the axis that two of them are seen."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    steps = (1,) if high / low > 300 else (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 5)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _band(
    axis: Axes, runs: Sequence[Sequence[Mapping[str, float]]], key: str, name: str, index: int
) -> None:
    """The mean over runs, and a band from the lowest to the highest."""
    points = list(zip(*runs, strict=False))
    across = [sum(p[key] for p in point) / len(point) for point in points]
    elbos = [[p["elbo"] for p in point] for point in points]
    axis.plot(across, [sum(e) / len(e) for e in elbos], **style(index), label=name)
    low, high = [min(e) for e in elbos], [max(e) for e in elbos]
    axis.fill_between(across, low, high, color=style(index)["color"], alpha=0.2, linewidth=0)
