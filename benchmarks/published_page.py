"""The page of what papers report and what benchmarks/published.py has measured of it."""

import csv
import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.codebooks import table as codebooks_table

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "published.md"
NOT_RUN = "not run"
WIDTH = 140
COLUMNS = ("row", "ours", "the paper's", "steps", "minutes", "test ELBO")
QUANTITIES = {
    "train_elbo": "The ELBO of the training images",
    "test_elbo": "The ELBO of the test images",
    "test_bound": "The bound on log p(x) of the test images, with {samples} samples of z",
}
HEAD = (HERE / "published_head.md").read_text()


def write(tables: dict[str, Any], results: Path) -> None:
    PAGE.write_text(page(tables, results))


def page(tables: dict[str, Any], results: Path) -> str:
    """Markdown.

    Args:
        tables: as published.yaml has them.
        results: the CSV; that of a table which another benchmark makes lies beside it.
    """
    sections = ("\n\n".join(section(*named, results)) for named in tables.items())
    return "\n\n".join([HEAD.strip(), *sections]) + "\n"


def section(name: str, about: dict[str, Any], results: Path) -> Iterator[str]:
    yield f"## `{name}`"
    yield filled(about["about"])
    labels = {"paper": "The paper", "protocol": "Protocol", "differences": "Different here"}
    yield "\n".join(
        filled(f"* {label}: {about[key]}", "  ") for key, label in labels.items() if key in about
    )
    if "command" in about:
        yield f"    {about['command']}"
        for title, name in about["results"].items():
            rows = read(results.with_name(name))
            yield f"{title}:"
            yield codebooks_table(rows, {}) if rows else f"This table was {NOT_RUN}."
    else:
        yield QUANTITIES[about["quantity"]].format(**about.get("bound", {})) + ":"
        measured = [line for line in read(results) if line["table"] == name]
        rows = (lines for row in about["rows"] for lines in cells(row, about, measured))
        yield markdown([COLUMNS, *rows])
    if "authors" in about:
        yield filled(about["authors"]["about"])
        yield f"    {about['authors']['command']}"
        yield of_authors(read(results.with_name(about["authors"]["results"])))
    if "findings" in about:
        yield filled(about["findings"])


def filled(text: str, indent: str = "") -> str:
    """Lines as long as those of the other pages."""
    return textwrap.fill(text.strip(), WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def read(results: Path) -> list[dict[str, str]]:
    """The lines of a CSV; none, where there is no file."""
    if not results.exists():
        return []
    with results.open(newline="") as file:
        return [*csv.DictReader(file)]


def cells(row: str, about: dict[str, Any], measured: list[dict[str, str]]) -> list[list[str]]:
    """A row of a table, for each length of its runs, the longest first."""
    lines = [line for line in measured if line["row"] == row]
    if not lines:
        return [[f"`{row}`", NOT_RUN, of_paper(about["rows"][row]), "", "", ""]]
    lengths = sorted({int(line["epochs"]) for line in lines}, reverse=True)
    return [
        of_length([line for line in lines if int(line["epochs"]) == epochs], row, about)
        for epochs in lengths
    ]


def of_length(lines: list[dict[str, str]], row: str, about: dict[str, Any]) -> list[str]:
    """A row of a table, by runs of one length."""
    paper = about["rows"][row]
    steps = f"{max(int(line['steps']) for line in lines):,}"
    whole = int(lines[0]["epochs"]) == paper.get("epochs", about["epochs"])
    test = "" if about["quantity"] == "test_elbo" else estimate(lines, "test_elbo")
    return [
        f"`{row}`",
        estimate(lines, about["quantity"]),
        of_paper(paper),
        steps if whole else f"{steps} of {paper.get('steps', about['steps']):,}",
        f"{statistics.mean(float(line['seconds']) for line in lines) / 60:.0f}",
        test,
    ]


def of_paper(row: dict[str, Any]) -> str:
    """The paper's number, if it has one."""
    value = row.get("value")
    return "" if value is None else f"{value:.2f}" + ("" if row["read"] else " (m)")


def of_authors(lines: list[dict[str, str]]) -> str:
    """What the authors' own package gives, by how its network starts."""
    rows = [("size", "start", "seed", "steps", "last epoch", "after it", "test ELBO")]
    for line in lines:
        key = (line["size"], line["start"], line["seed"], f"{600 * int(line['epochs']):,}")
        last = f"{float(line['last_epoch']):.2f}"
        rows.append((*key, last, estimate([line], "train_elbo"), estimate([line], "test_elbo")))
    return markdown(rows)


def estimate(lines: list[dict[str, str]], quantity: str) -> str:
    """The mean over the seeds and its standard error; of one seed the error over the images."""
    values = [float(line[quantity]) for line in lines]
    if len(values) == 1:
        return f"{values[0]:.2f} ± {float(lines[0][quantity + '_error']):.2f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {error:.2f} ({len(values)} seeds)"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *others])
