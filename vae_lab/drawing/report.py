"""A run as one HTML file: what was trained, how it went, and how good it is.

The file needs no network and no other file: pictures and scripts are inside, plotly's 5 MB among
them, packed to 2. Whatever comes from a run, names and commands above all, is text in the page and
never markup.
"""

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..description import RELAXATION
from ..figures import COLOURS, STYLES
from ..inputs import is_picture
from ..optional import needs
from ..storage import files
from ..storage.runs import Run, read
from . import charts
from .charts import number
from .gallery import captions

with needs("train", __name__):
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from PIL import Image
    from plotly.offline import get_plotlyjs

TEMPLATES = Path(__file__).parent / "templates"
PLACES = ("run_dir", "root", "train", "val", "test", "cache_dir", "download")
# Settings that say how a run was watched or kept, not what it was.
BESIDE = (
    *("task", "run_dir", "checkpoint", "resume", "exact", "save", "logger", "callbacks"),
    *("compare", "evaluate", "explore", "sample", "report", "encode", "decode", "impute"),
)
IMAGE = (1, 1, 1)  # as what is drawn that does not say its shape
ACRONYMS = ("elbo", "kl", "nll", "fid", "mig", "dci", "sap", "snr")


def write(
    folder: str | Path,
    source: str | Path | None = None,
    name: str | None = None,
    sha256: str | None = None,
) -> Path:
    """Writes `report.html` from what there is in the folder of a run.

    Args:
        folder: of the run, or of what was made of a model: pictures and `evaluation.json`.
        source: of the model, its card and its curves, where that is another folder.
        name: of the run; None: the folder's name.
        sha256: of the weights, as :func:`vae_lab.pretrained.digest` gives it; None: those of the
            release. What was measured of others is left out.

    Raises:
        FileNotFoundError: there is neither a run nor a release.
    """
    run = read(folder, source, name, sha256)
    page = _render(
        "run.html",
        title=f"{_subject(run)}: {run.name}",
        subject=_subject(run),
        name=run.name,
        headline=_headline(run),
        facts=_facts(run),
        charts=charts.of_run(run),
        pictures=_pictures(run),
        metrics=_metrics(run),
        measured=_measured(run),
        left_out=run.evaluation.get("left_out", []),
        diagnosis=run.evaluation.get("diagnosis", []),
        commands=run.commands,
        versions=_versions(run),
        config=yaml.safe_dump(run.config, sort_keys=False) if run.config else "",
    )
    return _save(page, Path(folder))


def compare(folders: Sequence[str | Path | Run], out: str | Path) -> Path:
    """Writes `report.html` into `out`: several runs beside each other.

    Args:
        folders: of runs or releases, or what :func:`read` gave for them.
        out: a folder.

    Raises:
        ValueError: fewer than two.
        FileNotFoundError: one of them is no run and no release.
    """
    if len(folders) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(folders)}")
    runs = _distinct([item if isinstance(item, Run) else read(item) for item in folders])
    tables = [dict((label, value) for label, value, _ in _metrics(run)) for run in runs]
    page = _render(
        "comparison.html",
        title=" / ".join(run.name for run in runs),
        subjects=[_subject(run) for run in runs],
        runs=runs,
        metrics={key: [table.get(key, "") for table in tables] for key in _keys(tables)},
        settings=_differing(runs),
        charts=charts.of_several(runs),
        pictures=[_pictures(run, ("samples", "reconstructions", "traversals")) for run in runs],
    )
    return _save(page, Path(out))


def _distinct(runs: list[Run]) -> list[Run]:
    """With the names of their folders, and more of the path where these are the same."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else run._replace(name=str(run.folder)) for run in runs
    ]


# The parts of the page


def _class(node: Mapping[str, Any] | None) -> str:
    """A part's class, of a config or of a card."""
    node = node or {}
    return str(node.get("class") or node.get("_target_") or "").rpartition(".")[2]


def _describe(node: Mapping[str, Any] | None) -> str:
    """A part in one line: its class and settings."""
    if not isinstance(node, Mapping):
        return ""
    kept = {k: v for k, v in node.items() if k not in ("_target_", "class", "_partial_", *PLACES)}
    settings = [f"{k}={_describe(v) if isinstance(v, Mapping) else v}" for k, v in kept.items()]
    return f"{_class(node)}({', '.join(settings)})"


def _subject(run: Run) -> str:
    """The model and its data."""
    model = _class(run.config.get("model")) or f"{_class(run.card.get('latent'))} VAE"
    data = _class(run.config.get("data") or run.card.get("data"))
    return f"{model} on {data}" if data else model


def _facts(run: Run) -> dict[str, str]:
    """The rows of the report's table that says what was trained: model, data, length, seed."""
    config, card = run.config, run.card
    own = {k: v for k, v in _model(run).items() if k != "optimizer"}
    shape = card.get("shape")
    size = " x ".join(map(str, shape or ()))
    seconds = [float(row["perf/seconds"]) for row in run.rows if row.get("perf/seconds")]
    steps = card.get("step") or (int(run.rows[-1]["step"]) if run.rows else None)
    facts = {
        "model": _describe(own),
        "data": _describe(config.get("data") or card.get("data")),
        "image": f"{size} (C x H x W)" if shape and is_picture(shape) else "",
        "datum": "" if shape is None or is_picture(shape) else f"{size} numbers",
        "network": _describe(config.get("network") or card.get("network")),
        "latent": _describe(card.get("latent")),
        "likelihood": _describe(config.get("likelihood") or card.get("likelihood")),
        "prior": _describe(config.get("prior") or card.get("prior")),
        "condition": _describe(card.get("condition")),
        "objective": _describe(config.get("objective")),
        "estimator": _describe(config.get("estimator")) or ("the model's own" if config else ""),
        "optimizer": _describe(_model(run).get("optimizer")),
        "parameters": "" if run.parameters is None else f"{run.parameters:,}",
        "training": "" if steps is None else f"{steps:,} steps",
        "seed": str(config.get("seed", "")),
    }
    if seconds and facts["training"]:
        facts["training"] += f" in {seconds[-1]:,.0f} s, validation not counted"
    return {name: value for name, value in facts.items() if value}


def _headline(run: Run) -> list[tuple[str, str]]:
    """The few numbers that matter most."""
    found = {label: value for label, value, _ in _metrics(run)}
    wanted = ("log likelihood", "ELBO", "NLL", "reconstruction", "KL", "active units", "FID")
    return [(name, found[name]) for name in wanted if name in found][:4]


def _metrics(run: Run) -> list[tuple[str, str, str]]:
    """Name, value and explanation: of the evaluation, or of the test at the end of training."""
    measured = run.evaluation.get("metrics")
    if measured is None:
        of_test = run.card.get("metrics", {})
        measured = {name.removeprefix("test/"): {"value": v} for name, v in of_test.items()}
        for name, value in run.card.get("test", {}).items():  # of the zoo
            if isinstance(value, Mapping):
                note = f"{value['samples']} samples" if "samples" in value else ""
                measured[name] = {"value": value["mean"], **value, "note": note}
    return [
        (_label(name), number(m["value"], m.get("standard_error")), _note(m))
        for name, m in measured.items()
    ]


def _label(name: str) -> str:
    """A metric's name, to read."""
    return " ".join(word.upper() if word in ACRONYMS else word for word in name.split("_"))


def _measured(run: Run) -> str:
    """The sentence that says on which images the metrics were measured."""
    if "metrics" not in run.evaluation:
        return "On the test split, at the end of training. task=evaluate measures more."
    e = {key: run.evaluation.get(key, "unknown") for key in ("images", "split", "data", "seed")}
    shape = run.card.get("shape") or IMAGE
    what = f"{e['images']} {'images' if is_picture(shape) else 'examples'}"
    return f"On {what} of the {e['split']} split of {e['data']}, with seed {e['seed']}."


def _note(metric: Mapping[str, Any]) -> str:
    return ", ".join(str(metric[key]) for key in ("unit", "note") if metric.get(key))


def _versions(run: Run) -> dict[str, str]:
    commit = run.evaluation.get("commit") or run.card.get("commit")
    versions = {"commit": run.card.get("commit"), "vae_lab": run.card.get("vae_lab")}
    versions |= run.card.get("versions") or run.evaluation.get("versions") or {}
    if run.evaluation and commit != versions["commit"]:
        versions["commit of the evaluation"] = commit
    return {name: str(version) for name, version in versions.items() if version}


def _pictures(run: Run, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    told = captions(tuple(run.card.get("shape") or IMAGE))
    known = [*told, *(name for name in run.pictures if name not in told)]
    chosen = [name for name in names or known if name in run.pictures]
    return [
        {
            "wide": _is_wide(run.pictures[name]),
            "title": told[name].title if name in told else name,
            "text": told[name].text if name in told else "",
            "data": base64.b64encode(run.pictures[name].read_bytes()).decode(),
        }
        for name in chosen
        if names is not None or name != "training"  # the page draws these curves itself
    ]


def _is_wide(path: Path) -> bool:
    """Would a picture be too small in half of the page."""
    with Image.open(path) as image:
        return image.width > 1000 and image.width > 1.7 * image.height


def _model(run: Run) -> dict[str, Any]:
    """The model's own settings: without its parts that have groups of their own in the config."""
    return {k: v for k, v in run.config.get("model", {}).items() if k not in run.config}


def _settings(run: Run) -> dict[str, str]:
    """All settings that make a run what it is, as text; of a release those on its card."""
    parts = {k: v for k, v in run.card.items() if isinstance(v, dict) and "class" in v}
    on_card = {k: v for k, v in parts.items() if k != RELAXATION}
    config = {k: v for k, v in run.config.items() if k not in (*BESIDE, *on_card)}
    if model := _model(run):
        named = on_card.get("latent", {})
        config["model"] = {k: v for k, v in model.items() if k not in named}
    flat = _flat(config | on_card)
    return {
        key: str(value) for key, value in flat if key.split(".")[-1] not in (*PLACES, "_partial_")
    }


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs that say what they are."""
    settings = [_settings(run) for run in runs]
    table = {}
    for key in _keys(settings):
        values = [own.get(key, "") for own in settings]
        told = {
            v
            for v, run, own in zip(values, runs, settings, strict=True)
            if run.config or key in own
        }
        if len(told) > 1:
            table[key] = values
    return table


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings as pairs of full name and value; a part's own name has its class."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif name in ("class", "_target_"):
            yield prefix.rstrip("."), str(value).rpartition(".")[2]
        else:
            yield f"{prefix}{name}", value


def _keys(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of all tables, each once, in their order."""
    return list(dict.fromkeys(key for table in tables for key in table))


# The file


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(template: str, **content: Any) -> str:
    script, packed, plotly_hash = (TEMPLATES / "report.js").read_text(), *_plotly()
    # The browser runs the scripts with these hashes and no other, and fetches nothing.
    return (
        _templates()
        .get_template(template)
        .render(
            **content,
            script=script,
            plotly=packed,
            hashes=[_hash(script), plotly_hash],
            style=(TEMPLATES / "report.css").read_text(),
            colours=COLOURS,
            dashes=STYLES,
        )
    )


@cache
def _plotly() -> tuple[str, str]:
    """The library as the page's script unpacks it, a third of its size, and its hash."""
    script = get_plotlyjs()
    packed = gzip.compress(script.encode(), mtime=0)
    return base64.b64encode(packed).decode(), _hash(script)


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _save(page: str, folder: Path) -> Path:
    path = folder / "report.html"
    files.write(path, page.encode())
    return path
