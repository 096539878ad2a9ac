"""Reads what is typed after train.py and refuses a mistake in one line, before anything is built.

Hydra's own answer to a mistyped setting is to suggest a plus sign, with which the run trains and
the setting does nothing. Here every key has to exist, in the config or in the signature of the
class that it configures.
"""

import functools
import gc
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .arguments import arguments_of, attribute
from .help import text as help_text
from .likeness import did_you_mean
from .own import CLASSES, FLAG, NO_FILE, NO_SEED, with_own_folder
from .own_data import with_own_data
from .places import CONFIGS, OWN
from .quoting import as_typed
from .refusals import foreseen
from .settings import DECIDED, GROUPS, OF_DATA, OPTIONAL
from .settings_table import choices, listed
from .signatures import SECTIONS, complaints
from .synonyms import called_here, setting_here

FLAGS = {"-m", "--multirun", "-h", "--help", "--hydra-help", "--version", "--info", "--resolve"}
VALUE_FLAGS = {"-c", "--cfg", "-p", "--package", FLAG}
SHOWS = {"-c", "--cfg", "--info", "--hydra-help", "--version"}  # and run nothing
UNKNOWN = "unknown setting "  # how such a complaint begins
# Tasks of a model that is as it was trained, and those of which another stage is trained.
FINISHED = ("sample", "export", "explore", "encode", "decode", "impute", "evaluate")
OF_FIRST_STAGE = ("latent", "network", "likelihood")
TARGETS = [f"{name}._target_" for name in CLASSES]
MERGED = [name for name, group in GROUPS.items() if group.several]


class Mistake(Exception):
    """Something that the user typed: what is wrong, what was expected, what to type."""


def check(arguments: list[str]) -> list[DictConfig]:
    """Refuses a command line that cannot be meant, whatever the number of its jobs.

    Args:
        arguments: what follows train.py.

    Returns:
        The config of every job.

    Raises:
        Mistake: one line that says what to type.
    """
    try:
        arguments = with_own_folder(arguments)
    except ValueError as error:
        raise Mistake(str(error)) from None
    typed, multirun = _split_flags(with_own_data(arguments))
    if multirun and {"-c", "--cfg"}.intersection(arguments):
        raise Mistake("--cfg shows one run: leave out -m, and type one value of each setting")
    overrides = _parse(typed)
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        configs = [_compose_checked(job) for job in _jobs(overrides, multirun)]
        for config in configs:
            if multirun and (config.trainer.strategy, config.trainer.devices) != ("auto", 1):
                raise Mistake(
                    "a sweep (-m) cannot start several processes for a job: type "
                    "trainer.strategy=auto trainer.devices=1, or run its jobs one by one"
                )
    return configs


def _split_flags(arguments: list[str]) -> tuple[list[str], bool]:
    typed: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in VALUE_FLAGS:
            next(rest, None)
        elif argument.startswith("-") and argument not in FLAGS:
            plain = argument.lstrip("-")
            hint = plain if "=" in plain else f"{plain}=VALUE"
            raise Mistake(f"settings have no dashes: type {hint} instead of {argument}")
        elif argument not in FLAGS:
            typed.append(argument)
    return typed, "-m" in arguments or "--multirun" in arguments


def _parse(typed: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    overrides = []
    for text in typed:
        if text.startswith("="):
            raise Mistake(f"a setting is KEY=VALUE, got {text!r}")
        try:
            overrides += parser.parse_overrides([text])
        except HydraException:
            key, equals, value = text.partition("=")
            if not equals:
                raise Mistake(f"a setting is KEY=VALUE, got {text!r}") from None
            if value.startswith("[") and not value.endswith("]"):
                raise Mistake(
                    f"cannot read {text}: type a list without spaces, or quote it whole, as in "
                    f"{key}=[A,B] or '{key}=[A, B]'"
                ) from None
            raise Mistake(
                f"cannot read {text}: quote the value twice, {as_typed(key, value)}"
            ) from None
    return overrides


def _jobs(overrides: list[Override], multirun: bool) -> Iterator[list[str]]:
    """The lines of every job of a sweep; of the one job where there is no sweep."""
    options = []
    chooses = any(o.key_or_group == "hydra/sweeper" for o in overrides)
    for override in overrides:
        if not override.is_sweep_override():
            options.append([override.input_line or ""])
            continue
        if not multirun:
            raise Mistake(f"{override.input_line} is more than one run: add -m{_or_else(override)}")
        if override.is_interval_sweep() and not chooses:
            raise Mistake(
                f"{override.input_line} needs a sweeper that chooses: add hydra/sweeper=optuna, or "
                "list the values"
            )
        options.append([f"{override.get_key_element()}={v}" for v in _values(override)])
    yield from ([*job] for job in itertools.product(*options))


def _or_else(override: Override) -> str:
    """The end of an error line: how to type A,B if it was not meant as several runs."""
    key, value = override.get_key_element(), (override.input_line or "").partition("=")[2]
    chosen = override.value()
    if not (isinstance(chosen, ChoiceSweep) and chosen.simple_form):
        return ""
    if not choices(override.key_or_group):
        return f", or type {key}=[{value}] for a list, {as_typed(key, value)} for a text"
    return f", or type {key}=[{value}]" if key in MERGED else ", or choose one"


def _values(override: Override) -> Iterable[str]:
    """The values that a sweep gives to a setting; for an interval, its two ends."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if isinstance(value, Glob):
        return value.filter(choices(override.key_or_group))
    return override.sweep_string_iterator()


def _compose_checked(lines: list[str]) -> DictConfig:
    overrides = [o for o in _parse(lines) if not o.key_or_group.startswith("hydra")]
    groups = [o for o in overrides if o.key_or_group in GROUPS]
    for override in groups:
        if override.input_line != NO_FILE:
            _check_choice(override)
    classes = [o for o in overrides if o.key_or_group in TARGETS]
    reference = _reference(tuple(str(o.input_line) for o in (*groups, *classes)), tuple(OWN))
    for override in overrides:
        if override not in groups and override.input_line != NO_SEED:
            _check_key(override, reference)
    config = _compose([str(o.input_line) for o in overrides])
    _check_finished(config.task, overrides)
    try:
        check_config(config)
    except Mistake as mistake:
        raise _of_experiment(mistake, config, overrides) from None
    return config


def _of_experiment(mistake: Mistake, config: DictConfig, overrides: list[Override]) -> Mistake:
    """The same; or where an experiment has set what another choice does not know, how to leave that
    out."""
    keys = [o.key_or_group for o in overrides]
    experiment = next((o.input_line for o in overrides if o.key_or_group == "experiment"), None)
    lines = complaints(OmegaConf.to_container(config))
    unknown = [line.split()[2].rstrip(";") for line in lines if line.startswith(UNKNOWN)]
    set_there = [key for key in unknown if key not in keys]
    if experiment is None or not set_there or not str(mistake).startswith(UNKNOWN):
        return mistake
    cure = " ".join(f"~{key}" for key in set_there)
    return Mistake(f"{experiment} sets what is unknown with the rest of the line: type {cure} too")


def _check_finished(task: str, overrides: list[Override]) -> None:
    """Refuses what would say another model than the one that there is."""
    for override in overrides:
        group = override.key_or_group.partition(".")[0]
        of_model = group == "model" or (group in GROUPS and GROUPS[group].of_model)
        if (task in FINISHED and of_model) or (task == "prior" and group in OF_FIRST_STAGE):
            raise Mistake(
                f"task={task} takes the model as it was trained: leave out {override.input_line}"
            )


def check_config(config: DictConfig) -> None:
    """Refuses a config with a setting that no class knows, or whose value has the wrong type.

    Raises:
        Mistake: one line on the first of them.
    """
    config = config.copy()
    if config.run_dir is None:
        config.run_dir = "runs/NAME"  # others refer to it; the run chooses one
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        if "HydraConfig" not in str(error):  # ${hydra:...} has a value only when the job runs
            raise Mistake(f"cannot resolve {error.full_key}: {error.msg.splitlines()[0]}") from None
        plain = OmegaConf.to_container(config)
    for message in complaints(plain):
        raise Mistake(message)


@functools.cache  # the jobs of a sweep mostly share it
def _reference(lines: tuple[str, ...], own: tuple[Path, ...]) -> dict[str, Any]:
    """The config with the chosen groups and classes, before any single setting."""
    return OmegaConf.to_container(_compose([*lines]))


def _compose(lines: list[str]) -> DictConfig:
    try:
        folders = [f"hydra.searchpath=['file://{folder}']" for folder in OWN]
        return compose("train", [*folders, *lines])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise Mistake(" ".join(str(error).split())) from None


def _check_choice(override: Override) -> None:
    group, chosen = override.key_or_group, override.value()
    known = choices(group)
    if override.is_delete():
        raise Mistake(_not_without(group))
    if isinstance(chosen, list) and group not in MERGED:
        raise Mistake(f"{group} is one of {', '.join(known)}, got a list: type {group}=NAME")
    for name in chosen if isinstance(chosen, list) else [chosen]:
        if name is None and group in OPTIONAL:
            owner = "data" if group in OF_DATA else "model"
            raise Mistake(f"{group}=null is the default, the {owner}'s own: leave it out")
        if name not in known:
            close = called_here(group, str(name)) or did_you_mean(str(name), known)
            shown = "null" if name is None else repr(name)
            names = listed(known) or f"none yet, add configs/{group}/NAME.yaml"
            raise Mistake(f"unknown {group} {shown}{close}; known: {names}")


def _not_without(key: str) -> str:
    return f"a run needs {key}: leave out ~{key}"


def _check_key(override: Override, reference: dict[str, Any]) -> None:
    key = override.key_or_group
    parent, _, name = key.rpartition(".")
    if name.startswith("_") and key not in TARGETS:
        raise Mistake(f"{key} is not for the command line: add a file to configs/ and choose it")
    if key in DECIDED:
        raise Mistake(f"{key} is not a setting: {DECIDED[key]}")
    if not _exists(key, reference):
        siblings = _find(parent, reference)
        known = arguments_of(siblings.get("_target_", "builtins.object"))
        if name not in known:
            names = [*_keys(reference), *(f"{parent}.{name}" for name in known)]
            able = [n for n in names if n not in DECIDED and not _replaced(n, reference)]
            hint = setting_here(key) or did_you_mean(key, able)
            raise Mistake(f"unknown setting {key}{hint or _known(parent, siblings)}")
        if not (override.is_add() or override.is_force_add()):
            raise Mistake(f"{key} is not in the config; add it with +{override.input_line}")
    elif override.is_delete() and (
        not parent or parent.partition(".")[0] in (*SECTIONS, "trainer")
    ):
        raise Mistake(_not_without(key))
    _check_kind(override, _find(parent, reference).get(name))
    if refused := _replaced(key, reference):
        raise Mistake(refused)


def _check_kind(override: Override, default: Any) -> None:
    """Refuses a list for a group of settings, and the other way round, which Hydra cannot merge."""
    key, value = override.key_or_group, None if override.is_delete() else override.value()
    if isinstance(default, list) and isinstance(value, dict):
        raise Mistake(f"{key} must be a list, got a group of settings: type {key}=[A,B]")
    if isinstance(default, dict) and isinstance(value, list):
        raise Mistake(
            f"{key} must be one value or a group of settings, got a list: type {key}=VALUE"
            f"{_known(key, default)}"
        )


def _replaced(key: str, reference: dict[str, Any]) -> str | None:
    """Why a setting of the model's own estimator or latent does nothing: another one was chosen."""
    group, _, name = key.partition(".")
    for part in [part for part in OPTIONAL if group == "model" and reference[part] is not None]:
        own = attribute(reference["model"]["_target_"], f"own_{part}_settings") or ()
        if name in own:
            known = arguments_of(reference[part]["_target_"])
            instead = f"type {part}.{name}=..." if name in known else "leave it out"
            return f"{key} belongs to the model's own {part}, which {part}=... replaces; {instead}"
    return None


def _find(path: str, reference: dict[str, Any]) -> dict[str, Any]:
    """The settings at a path; none where there is nothing or no group of settings."""
    node: Any = reference
    for part in path.split(".") if path else []:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _exists(key: str, reference: dict[str, Any]) -> bool:
    parent, _, name = key.rpartition(".")
    return name in _find(parent, reference)


def _keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """All settings in a config, by their full names."""
    for name, child in node.items():
        if not name.startswith("_"):
            yield f"{prefix}{name}"
            if isinstance(child, dict):
                yield from _keys(child, f"{prefix}{name}.")


def _known(parent: str, siblings: dict[str, Any]) -> str:
    """The names that could have been typed in the same place."""
    prefix = f"{parent}." if parent else ""
    names = [f"{prefix}{name}" for name in siblings if not name.startswith("_")]
    return f"; known: {', '.join(names)}" if names else ""


def exit_on_mistake(arguments: list[str]) -> list[str]:
    """:func:`check`, as the process's end: one line on stderr and exit code 2; or the help.

    Returns:
        The arguments as Hydra is to read them.
    """
    if {"-h", "--help"}.intersection(arguments):
        try:
            print(help_text(), flush=True)
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
    gc.disable()  # it would walk through every source file that is read, again and again
    try:
        configs = check(arguments)
        if not SHOWS.intersection(arguments):
            _foresee(configs, here=not any(a.startswith("hydra/launcher=") for a in arguments))
    except Mistake as mistake:
        print(f"train.py: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        gc.enable()
    return with_own_data(with_own_folder(arguments))


def _foresee(configs: list[DictConfig], here: bool) -> None:
    """Refuses what is no mistake in itself and yet cannot run; of a sweep, if no job of it can."""
    refused = []
    for config in configs:
        if (line := foreseen(config, here)) is None:
            return
        refused.append(line)
    raise Mistake(refused[0])
