"""task=evaluate: the numbers of one model, or of several beside each other."""

import copy
import json
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from commandline.refusals import checkpoints_of
from vae_lab import pictures
from vae_lab.evaluation import PARTS, Evaluation, Metric, Settings, evaluate
from vae_lab.evaluation.diagnosis import own_temperature
from vae_lab.evaluation.features import choose
from vae_lab.loggers import begin, end
from vae_lab.storage import files, sources
from vae_lab.storage.runs import lock, writable
from vae_lab.storage.sources import first_line

from . import build
from .bars import bars
from .names import names_of
from .report import refresh
from .same_data import differences, measured_on
from .show import say
from .trained import Trained, trained

FILE = "evaluation.json"
NUMBERS = re.compile(r"\[\n[\s\d.,eE+\-]+\]")  # a list of them, one on each line


def run(config: DictConfig) -> None:
    """Evaluates every `checkpoint`, in as many processes as the trainer would have."""
    chosen = checkpoints_of(config)
    for source in chosen:
        sources.resolve(source)  # a mistyped one is known before the others have taken minutes
    trainer = config.trainer
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else "ddp"
    fabric = Fabric(
        accelerator=trainer.accelerator,
        strategy=strategy,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
    )
    fabric.launch(_run, config, chosen)


def _run(fabric: Fabric, config: DictConfig, chosen: list[str]) -> None:
    found: dict[str, dict[str, Any]] = {}
    measured = []
    for source, name in zip(chosen, names_of(chosen), strict=True):
        own = len(chosen) > 1 and config.run_dir is not None
        loaded = trained(config, source, name, Path(config.run_dir) / name if own else None)
        loaded.vae.to(fabric.device)
        _prepare(fabric, config, loaded)
        found[name] = _evaluated(config, loaded)
        measured.append(measured_on(loaded))
    if fabric.global_rank:
        return
    if len(chosen) > 1:
        _table_of_several(found, dict(differences(measured)))
        if config.run_dir is not None:
            _write(Path(config.run_dir) / "evaluations.json", found)


def _prepare(fabric: Fabric, config: DictConfig, loaded: Trained) -> None:
    """All that may fail before minutes of measuring; of a machine's processes one downloads."""
    asked = config.evaluate
    if fabric.local_rank == 0:
        loaded.datamodule.prepare_data()
        if asked.features is not None and "samples" in (asked.parts or PARTS):
            choose(asked.features)
    fabric.barrier()
    loaded.datamodule.setup("test")
    writable(loaded.folder)


def _evaluated(config: DictConfig, loaded: Trained) -> dict[str, Any]:
    """Measures, writes and shows the evaluation of one model."""
    data = loaded.datamodule.unaugmented()
    say(f"{loaded.name}: {type(data).__name__}, test split")
    with closing(data.test_dataloader()) as test, closing(data.train_dataloader()) as train:
        settings = _settings(config, loaded, train)
        with bars() as progress:
            evaluation = evaluate(loaded.vae, test, settings, progress=progress)
    if not evaluation.metrics:
        raise ValueError(
            f"{', '.join(config.evaluate.parts)} measures nothing of {loaded.name}: ais needs a "
            "Gaussian latent and, of a grid, evaluate.ais_images, samples and latents need more "
            "images; type other evaluate.parts"
        )
    result = _about(loaded) | evaluation.to_dict()
    if rank_zero_only.rank == 0:
        _write(loaded.folder / FILE, result)
        for name, rows in evaluation.pictures.items():
            grid = pictures.grid(rows.flatten(0, 1), columns=rows.shape[1])
            pictures.save(grid, loaded.folder / "images" / f"{name}.png")
        _table(loaded.name, evaluation)
        _log(loaded, evaluation)
        if config.report:
            refresh(loaded)
        say(f"files    {loaded.folder}: {FILE}{', report.html' if config.report else ''}")
    return result


def _settings(config: DictConfig, loaded: Trained, train: Iterable[Any]) -> Settings:
    """The settings that were asked for, together with what is known of the run and of its data."""
    asked: dict[str, Any] = OmegaConf.to_container(config.evaluate, resolve=True)
    memory, data = asked.pop("memory_gb") * 1e9, loaded.datamodule
    return Settings(
        **asked,
        memory=memory,
        seed=config.seed,
        train=train,
        shown=_shown(data),
        factors=data.factors if data.factor_names else None,
        categorical=data.categorical_factors,
        estimator=loaded.estimator,
        known={} if loaded.model is None else own_temperature(loaded.model),
    )


def _about(loaded: Trained) -> dict[str, Any]:
    data = type(loaded.datamodule)
    return {
        "name": loaded.name,
        "checkpoint": loaded.typed,
        "command": build.command(),
        "commit": build.commit(),
        "versions": build.versions(),
        "sha256": loaded.sha256,  # as the same file may hold others later
        "data": data.__module__.rpartition(".")[2],
        "split": "test",
    }


def _shown(data: pl.LightningDataModule) -> tuple[Iterable[Any], Iterable[Any]] | None:
    """Test and training images without the noise of their binarisation, where there is some."""
    if getattr(data, "binarize", "none") != "stochastic":
        return None
    plain = copy.copy(data.unaugmented())
    plain.binarize = "none"
    return plain.test_dataloader(), plain.train_dataloader()


def _write(path: Path, content: dict[str, Any]) -> None:
    """Without the folder's lock: the run may still be training."""
    text = json.dumps(content, indent=2, allow_nan=False)
    in_rows = NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    files.write(path, (in_rows + "\n").encode())


def _log(loaded: Trained, evaluation: Evaluation) -> None:
    """To the run's W&B, online or offline as it was; nothing where it had none.

    The numbers are in the file already: whatever fails here is one warning.
    """
    saved = {} if loaded.model is None else loaded.model.config
    settings = (saved.get("logger") or {}).get("wandb")
    if settings is None or not (loaded.folder / "wandb-id.txt").is_file():
        return
    try:
        with lock(loaded.folder):  # a run that still trains has its W&B to itself
            logger = build.make(OmegaConf.create(settings | {"run_dir": str(loaded.folder)}))
            begin(logger)
            logger.log_metrics({f"evaluation/{n}": m.value for n, m in evaluation.metrics.items()})
            end(0)  # the next model is another run
    except Exception as error:
        rank_zero_warn(f"not sent to W&B: {first_line(error)}")


def _table(name: str, evaluation: Evaluation) -> None:
    table = Table("metric", Column("value", justify="right", no_wrap=True), "how", title=name)
    for row in evaluation.rows():
        table.add_row(*map(escape, row))
    _print(table)
    for line in evaluation.left_out:
        say(f"left out: {line}")
    for found in evaluation.diagnosis:
        if found.level != "fine":
            say(f"{found.level}: {found.name}: {found.because}; {found.advice}")
    fine = [found.name for found in evaluation.diagnosis if found.level == "fine"]
    if fine:
        say(f"fine: {', '.join(fine)}")


def _table_of_several(found: dict[str, dict[str, Any]], differing: dict[str, list[str]]) -> None:
    """One column a model; first what keeps the columns from being compared."""
    table = Table("metric", *(Column(name, justify="right", no_wrap=True) for name in found))
    for name, values in differing.items():
        table.add_row(name, *map(escape, values))
    table.add_section()
    names = dict.fromkeys(metric for one in found.values() for metric in one["metrics"])
    for metric in names:
        table.add_row(metric, *(_short(one["metrics"].get(metric)) for one in found.values()))
    problems = [
        ", ".join(d["name"] for d in one["diagnosis"] if d["level"] != "fine") or "none"
        for one in found.values()
    ]
    table.add_section()
    table.add_row("diagnosis", *problems)
    _print(table)
    if differing:
        say(f"not the same data: nats cannot be compared ({', '.join(differing)})")


def _short(metric: dict[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return ""
    return str(Metric(metric["value"], metric["standard_error"]))


def _print(table: Table) -> None:
    # A number that is cut says nothing: rather let a narrow terminal break the lines.
    Console(width=max(Console().width, 110)).print(table)
