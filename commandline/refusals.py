"""Finds the reasons to refuse a run that can be known before torch is imported."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .likeness import did_you_mean
from .places import ROOT
from .quoting import OF_SEVERAL, as_typed, expand_home
from .rehearsal import foresee, refusal
from .settings import OF_DATA, POSITIVE
from .settings_table import choices

# From wherever it may come.
OF_A_MODEL = (
    *("prior", "evaluate", "report", "explore", "sample", "export"),
    *("encode", "decode", "impute"),
)
CONVERT = ("encode", "decode", "impute")
OF_PICTURES = {"decode": ("",), "sample": ("", ".png")}  # besides; "": a folder
WRITTEN = (".npy", ".csv", ".parquet")  # by them
OF_A_RUN = ("test", "compare")
MADE = {  # by a task that begins with no checkpoint
    "fit": ("data", "model", "callbacks", "logger", "trainer"),
    "compare": ("data", "model"),
    "shards": ("data",),
}


def foreseen(config: DictConfig, here: bool = True) -> str | None:
    """The first thing that a run would be refused for; None where there is none.

    Args:
        config: of one run.
        here: it runs on this machine, so that what it reads has to be here.
    """
    try:
        return _foreseen(config, here)
    except Exception:  # what the run itself will meet, and say
        return None


def _foreseen(config: DictConfig, here: bool) -> str | None:
    try:
        check_task(config)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    config = config.copy()
    expand_home(config)
    new = config.resume is None or _begins(config, here)
    found = config.resume == "auto" and config.run_dir is None  # maybe, among the runs
    if config.run_dir is None:
        config.run_dir = "runs/NAME"  # others refer to it
    plain = OmegaConf.to_container(config, resolve=True)
    try:
        if new and config.task not in ("test", "export"):
            check_ranges(config)
        if new and config.checkpoint is None and config.task in ("fit", "compare"):
            takes_columns(plain)
    except ValueError as error:
        return str(error)
    missing = _missing(config, starts=new and not found) if here else ()
    made = _refused(config, plain, here) if new and config.checkpoint is None else ()
    return next(filter(None, itertools.chain(missing, made)), None)


def _begins(config: DictConfig, here: bool) -> bool:
    """Whether resume=auto begins a new run, and in a sweep each of its runs.

    There is then no run to go on with, or only one with the same settings.
    """
    if config.resume != "auto" or config.run_dir is None:
        return config.resume == "auto"
    saved = (Path(config.run_dir).glob(f"{jobs}checkpoints/*.ckpt") for jobs in ("", "*/"))
    return here and not any(map(any, saved))


def _refused(config: DictConfig, plain: dict[str, Any], here: bool) -> Iterator[str | None]:
    """The refusals of all constructors, if no checkpoint brings settings of its own."""
    if takes_columns(plain):
        plain["model"] |= {"likelihood": None}
    for name in MADE.get(config.task, ()):
        of_model = name == "model"
        node = plain[name] | chosen_latent(plain) if of_model else plain[name]
        given = given_by_data(plain) if of_model else ()
        yield refusal(node, name, ROOT, given, then="check_root" if here else None)
    if config.task == "fit":
        times = {name: plain["save"][name] for name in ("every_n_steps", "every_minutes")}
        counts = {name: plain["save"][name] for name in ("keep", "failures")}
        yield foresee("vae_lab.callbacks.Checkpointing", times, ROOT)
        yield foresee("vae_lab.callbacks.DurableIO", counts, ROOT)


def given_by_data(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments of the model that only the data knows."""
    model = config["model"]
    conditional = ("classes", "attributes") if model.get("condition") is not None else ()
    return ("shape", *conditional, *(name for name in OF_DATA if model[name] is None))


def takes_columns(config: Mapping[str, Any]) -> bool:
    """Whether the data has to say which columns the likelihood is of, as with likelihood=columns.

    Raises:
        ValueError: the data has none.
    """
    likelihood, data = config["likelihood"] or {}, config["data"]
    if likelihood.get("columns", ...) is not None:
        return False
    if "columns" not in data:
        raise ValueError(
            f"likelihood=columns is of the columns of a table, and {data['_target_']} has none: "
            "leave it out, or type data=arrays data.train=FILE"
        )
    return True


def chosen_latent(config: Mapping[str, Any]) -> dict[str, Any]:
    """What latent=NAME adds to the arguments of the model, which otherwise has its own."""
    return {} if config["latent"] is None else {"latent": config["latent"]}


def _missing(config: DictConfig, starts: bool) -> Iterator[str | None]:
    """Error lines for models and runs that do not exist; with `starts`, for those in `init` too."""
    if config.task in OF_A_MODEL:
        several = f"task={config.task}" in OF_SEVERAL
        yield from map(_no_model, checkpoints_of(config) if several else [config.checkpoint])
    if config.task in OF_A_RUN and config.checkpoint is not None:
        yield _no_run(config.checkpoint)
    if config.task == "fit" and config.resume not in (None, "auto"):
        yield _no_run(config.resume)
    if config.task == "fit" and starts:
        parts = (config.init[name] for name in ("encoder", "posterior", "decoder", "model"))
        yield from (_no_model(part) for part in parts if part is not None)


def _no_model(source: str) -> str | None:
    return foresee("vae_lab.storage.sources.resolve", {"source": source}, ROOT)


def _no_run(source: str) -> str | None:
    return foresee("vae_lab.storage.checkpoints.saved_at", {"source": source}, ROOT)


def check_task(config: DictConfig) -> None:
    """Refuses a task without what it works on or writes to."""
    if config.task in (*OF_A_MODEL, "test"):
        checkpoint_of(config)
    if config.task == "prior" and config.prior is None:
        known = ", ".join(choices("prior"))
        raise ValueError(f"task=prior needs a prior to train: type prior=NAME, one of {known}")
    if config.task in CONVERT or config.task == "sample" and config.sample.out is not None:
        _check_files(config)
    if config.run_dir is None and config.task == "shards":
        raise ValueError("task=shards needs a folder to write to: type run_dir=FOLDER")
    if config.run_dir is None and config.task == "report" and len(checkpoints_of(config)) > 1:
        raise ValueError("a report of several needs a folder of its own: type run_dir=FOLDER")


def _check_files(config: DictConfig) -> None:
    """Refuses to convert from nothing, or to a file of a kind that none is written as."""
    node, task = config[config.task], f"task={config.task}"
    if node.out is None:
        raise ValueError(f"{task} needs a file to write: type {config.task}.out=FILE.npy")
    pictures = OF_PICTURES.get(config.task, ())
    known = [*WRITTEN, *filter(None, pictures)]
    if Path(node.out).suffix.lower() not in (*known, *pictures):
        or_folder = ", or a folder for pictures" if pictures else ""
        raise ValueError(
            f"{config.task}.out must be a file {' '.join(known)}{or_folder}, got {node.out}"
        )
    if config.task != "decode":
        return
    if node.file is None:
        raise ValueError(f"{task} needs what task=encode has written: type decode.file=FILE")
    source = Path(node.file).expanduser()
    if source.suffix.lower() not in WRITTEN:
        raise ValueError(f"decode.file must be a file {' '.join(WRITTEN)}, got {node.file}")
    if not source.is_file():
        raise FileNotFoundError(f"decode.file: there is no file {source}")


def checkpoint_of(config: DictConfig) -> str:
    """The value typed for `checkpoint`, which must be given."""
    if config.checkpoint is None:
        raise ValueError(f"task={config.task} needs a trained model: type checkpoint=runs/NAME")
    return config.checkpoint


def checkpoints_of(config: DictConfig) -> list[str]:
    """The one or more sources, separated by commas, that were typed as `checkpoint`."""
    typed = checkpoint_of(config)
    if Path(typed).exists():  # a path may have commas
        return [typed]
    return list(dict.fromkeys(source.strip() for source in typed.split(",") if source.strip()))


def check_ranges(config: DictConfig) -> None:
    """Refuses settings that cannot be meant, by the rules that no constructor checks."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed must be in [0, 2^32), got {config.seed}")
    if config.ema is not None and not 0 <= config.ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {config.ema}")
    if config.threads is not None and config.threads < 1:
        raise ValueError(f"threads must be at least 1, got {config.threads}")
    if config.cuda_graphs and not config.compile:
        raise ValueError("cuda_graphs are made of a compiled step: type compile=true as well")
    if config.early_stopping is not None and config.trainer.limit_val_batches == 0:
        raise ValueError(
            "early_stopping waits for val/elbo, which trainer.limit_val_batches=0 leaves out: type "
            "early_stopping=null"
        )
    _check_sharding(config)
    if config.checkpoint is not None and config.task == "fit":
        raise ValueError(
            "checkpoint is what the other tasks read, as task=evaluate; to go on training, type "
            f"{as_typed('resume', config.checkpoint)}"
        )
    _check_precision(config)
    _check_counts(config)


def _check_sharding(config: DictConfig) -> None:
    """Refuses settings that do not work with FSDP, which shards no scalars."""
    target = OmegaConf.select(config, "trainer.strategy._target_") or ""
    if not target.endswith("ModelParallelStrategy"):
        return
    if config.ema is not None:
        raise ValueError(
            "ema needs the whole weights in every process: use trainer=ddp or ema=null"
        )
    if any("GradientProbe" in (c or {}).get("_target_", "") for c in config.callbacks.values()):
        raise ValueError(
            "callbacks=gradient_probe needs the whole weights in one process: use trainer=ddp"
        )
    if (config.model.likelihood or {}).get("learned"):
        raise ValueError(
            "a learned sigma is one number, which cannot be sharded: use trainer=ddp or "
            "likelihood.learned=false"
        )


def _check_precision(config: DictConfig) -> None:
    half, clip = ("16-mixed", "16", 16), config.trainer.gradient_clip_val
    if config.trainer.precision in half and clip and config.model.optimizer.get("fused"):
        raise ValueError(
            "trainer.gradient_clip_val under float16 needs model.optimizer.fused=false, or type "
            "trainer.precision=bf16-mixed"
        )


def _check_counts(config: DictConfig) -> None:
    for name in ("compare.repeats", "compare.reference_repeats", "compare.evaluations"):
        count = OmegaConf.select(config, name)
        if count is not None and count < 2:
            raise ValueError(f"{name} must be at least 2, got {count}")
    for name in config.compare.estimators or ():
        if name not in (known := choices("estimator")):
            hint = did_you_mean(name, known)
            raise ValueError(f"unknown estimator {name!r}{hint}; known: {', '.join(known)}")
    if not 0 <= config.explore.port < 2**16:
        raise ValueError(f"explore.port must be in 0 to {2**16 - 1}, got {config.explore.port}")
    for name in ("compare.estimators", "evaluate.parts"):
        chosen = OmegaConf.select(config, name)
        if chosen is not None and not chosen:
            raise ValueError(f"{name} must name at least one; null: all")
    if (config.evaluate.ais_images or 0) < 0:
        raise ValueError(
            f"evaluate.ais_images must not be negative, got {config.evaluate.ais_images}"
        )
    for name in POSITIVE:
        value = OmegaConf.select(config, name)
        endless = name.startswith("trainer.max_") and value == -1
        if isinstance(value, int | float) and value <= 0 and not endless:  # or a time, as text
            raise ValueError(f"{name} must be positive, got {value}")
