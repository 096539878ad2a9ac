"""Figures of numbers, with matplotlib: colour-blind safe, one line style a method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

# Okabe & Ito's palette, told apart with any colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
STYLES = ["-", "--", "-.", ":"]


def style(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th line."""
    dash = STYLES[index // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dash}


def panels(count: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in a row, drawn without a screen."""
    figure = Figure(figsize=(4.2 * count, height), layout="constrained", dpi=120)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    return figure, list(axes)


def write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(path, metadata={"Software": None})


def gradients(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Bias, variance, SNR and cosine against the step, from the rows of a metrics.csv."""
    rows = [row for row in rows if row.get("gradient/variance")]
    if not rows:
        return
    figure, axes = panels(4)
    steps = [int(row["step"]) for row in rows]
    for axis, name in zip(axes, ("bias", "variance", "snr", "cosine"), strict=True):
        axis.plot(steps, [float(row[f"gradient/{name}"]) for row in rows], **style(0), label=name)
        axis.set(xlabel="step", title=name, yscale="linear" if name == "cosine" else "log")
    noise = [float(row["gradient/bias_noise"]) for row in rows]
    axes[0].plot(steps, noise, **style(8 + 7), label="of an unbiased one")
    axes[0].legend(frameon=False)
    write(figure, path)


def comparison(
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    path: Path,
) -> None:
    """Estimators beside each other: bias, variance and cost, and how the ELBO rose with each.

    Args:
        rows: `estimator`, `bias`, `bias_noise`, `variance` and `seconds` of each.
        curves: for each estimator, runs (seeds) of points with `step`, `seconds` and `elbo`.
    """
    figure, axes = panels(5 if curves else 3, height=1.2 + 0.22 * max(len(rows), 12))
    names = [row["estimator"] for row in rows]
    for axis, key, title in zip(
        axes[:3],
        ("bias", "variance", "seconds"),
        ("bias, relative", "variance", "seconds a step"),
        strict=True,
    ):
        colours = [style(i)["color"] for i in range(len(rows))]
        axis.barh(names, [row[key] for row in rows], color=colours)
        axis.set(title=title, xscale="log")
        axis.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
    noise = [row["bias_noise"] for row in rows]
    axes[0].plot(noise, names, "k|", markersize=9, label="of an unbiased one")
    axes[0].legend(frameon=False, fontsize="small")
    for axis in axes[1:3]:
        axis.set_yticklabels([])
    for axis, key in zip(axes[3:], ("step", "seconds") if curves else (), strict=True):
        for index, (name, runs) in enumerate(curves.items()):
            _band(axis, runs, key, name, index)
        axis.set(title="validation ELBO", xlabel="training seconds" if key == "seconds" else key)
    if curves:
        axes[-1].legend(frameon=False, fontsize="small", loc="lower right")
    write(figure, path)


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
