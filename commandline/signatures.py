"""Checks a config against the constructors: keys and types must be those of the signatures."""

import inspect
import math
import types
import typing
from collections import abc
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, TypedDict

import yaml

from .arguments import arguments_of
from .likeness import did_you_mean
from .settings import DECIDED, GROUPS, NAMING_PLACES, OF_DATA, OPTIONAL
from .synonyms import called_here


class Init(TypedDict):
    """Parts to take over from other runs."""

    encoder: str | None
    posterior: str | None
    decoder: str | None
    model: str | None
    strict: bool
    freeze: list[Literal["encoder", "posterior", "decoder", "model"]]


class Save(TypedDict):
    """The settings below `save`: when a run is saved."""

    every_n_steps: int | None
    every_minutes: float | None
    keep: int
    failures: int


class Compare(TypedDict):
    """The settings below `compare`: what task=compare measures."""

    estimators: list[str] | None
    images: int
    repeats: int
    reference_repeats: int
    evaluations: int | None
    train_epochs: int
    seeds: list[int]


class Evaluate(TypedDict):
    """The settings below `evaluate`: what task=evaluate measures."""

    parts: list[Literal["bound", "ais", "split", "samples", "latents"]] | None
    images: int | None
    samples: int | None
    ais_images: int | None
    ais_steps: int
    features: Literal["inception"] | None
    temperatures: list[float]
    memory_gb: float


class Explore(TypedDict):
    """The page of task=explore."""

    port: int
    images: int


class Sample(TypedDict):
    """The settings below `sample`: what task=sample draws."""

    count: int | None
    y: int | float | str | list[float] | list[str] | None
    temperature: float
    out: str | None


class Encode(TypedDict):
    """The settings below `encode`: what task=encode writes."""

    what: Literal["mean", "sample", "codes"]
    split: Literal["train", "val", "test", "all"]
    out: str | None


class Decode(TypedDict):
    """The settings below `decode`."""

    file: str | None
    out: str | None


class Impute(TypedDict):
    """The settings below `impute`."""

    draw: bool
    samples: int
    split: Literal["train", "val", "test", "all"] | None
    out: str | None


class OfNoClass(TypedDict):
    """The settings that belong to no class."""

    task: Literal[
        *("fit", "prior", "test", "sample", "export", "compare", "shards"),
        *("evaluate", "report", "explore", "encode", "decode", "impute"),
    ]
    run_dir: str | None
    seed: int
    checkpoint: str | None
    resume: str | None
    exact: bool
    save: Save
    compile: bool
    cuda_graphs: bool
    channels_last: bool
    threads: int | None
    matmul_precision: Literal["highest", "high", "medium"]
    report: bool
    ema: float | None
    early_stopping: int | None
    on_nonfinite: Literal["stop", "skip"]
    max_skipped: int
    init: Init
    compare: Compare
    evaluate: Evaluate
    explore: Explore
    sample: Sample
    encode: Encode
    decode: Decode
    impute: Impute


# The settings of no class that have others below them.
SECTIONS = [name for name, hint in OfNoClass.__annotations__.items() if typing.is_typeddict(hint)]


def complaints(config: Mapping[str, Any]) -> Iterator[str]:
    """A line for every setting of the whole config that no class knows or that has a wrong type."""
    hints = typing.get_type_hints(OfNoClass)
    yield from _of_fields({k: config[k] for k in hints if k in config}, hints, "")
    for name in SECTIONS:
        yield from _of_fields(config[name], typing.get_type_hints(hints[name]), f"{name}.")
    for name, node in config.items():
        if name not in hints:
            if not isinstance(node, Mapping) and not (node is None and name in OPTIONAL):
                yield f"{name} must be a group of settings, got {node!r}"
            yield from _of_node(node, name)


def _of_node(node: Any, path: str) -> Iterator[str]:
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        try:
            known = arguments_of(node["_target_"])
        except (ImportError, ValueError) as error:  # Hydra's have several lines
            reason = " ".join(str(error.__cause__ or error).split())
            yield f"there is no {node['_target_']} to be imported for {path}: {reason}"
            return
        fields = {k: v for k, v in node.items() if not k.startswith("_")}
        yield from _of_fields(fields, known, f"{path}.")
    for name, child in node.items():
        yield from _of_node(child, f"{path}.{name}")


def _of_fields(fields: Mapping[str, Any], hints: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in fields.items():
        if name not in hints:
            yield f"unknown setting {prefix}{name}; known: {', '.join(sorted(hints))}"
        elif f"{prefix}{name}" in DECIDED:
            yield f"{prefix}{name} is not a setting: {DECIDED[f'{prefix}{name}']}"
        elif value == "???":
            yield f"{prefix}{name} has no default: type {prefix}{name}=..."
        elif f"{prefix}{name}" in NAMING_PLACES and isinstance(value, str) and not value.strip():
            yield f"{prefix}{name} is empty: type a place, or leave it out"
        elif prefix == "model." and name in OF_DATA and value is None:
            continue  # the run puts the data's own there
        elif not fits(value, hints[name]):
            must = f"{prefix}{name} must be {in_words(hints[name])}, got {value!r}"
            yield must + _instead(prefix, name, value, hints[name])


def _instead(prefix: str, name: str, value: Any, hint: Any) -> str:
    """The end of an error line: how to type a value whose kind has a form of its own."""
    group = GROUPS.get(name)
    if prefix == "model." and group and group.of_model and isinstance(value, str):
        return f": type {name}={value}"
    if (prefix, name, value) == ("model.", "estimator", None):
        return (
            ": type estimator=NAME, or let the model's constructor take estimator=None and pass on "
            "its own choice"
        )
    if typing.get_origin(hint) is abc.Callable:
        return f": type {prefix}{name}.NAME=VALUE"
    if _is_list(value, hint):
        return f": type {prefix}{name}=[{value}]"
    choices = _choices(hint) if isinstance(value, str) else []
    if here := called_here(f"{prefix}{name}", str(value)):
        return here
    return did_you_mean(str(value), choices, f"{prefix}{name}=")


def _is_list(value: Any, hint: Any) -> bool:
    """Would it fit with brackets around it."""
    try:
        return fits([yaml.safe_load(item) for item in str(value).split(",")], hint)
    except yaml.YAMLError:
        return False


def fits(value: Any, hint: Any) -> bool:
    """Can a plain config value stand for an argument of this type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, str) and value.startswith("${"):
        return True  # known only when the job runs
    if isinstance(value, Mapping):
        return _takes_object(hint) if "_target_" in value else _takes_mapping(hint)
    if hint is Any or isinstance(hint, str | typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and isinstance(value, list):
        return len(value) == len(inner) and all(map(fits, value, inner))
    if inspect.isclass(origin) and issubclass(origin, Collection):
        many = isinstance(value, list) and not issubclass(origin, Mapping)
        return many and all(fits(item, inner[0]) for item in value)
    if hint is None or hint is type(None):
        return value is None
    if value is None or origin is abc.Callable:
        return False
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    return hint.__name__ == "Path" and isinstance(value, str) if inspect.isclass(hint) else True


def _takes_object(hint: Any) -> bool:
    """Whether the type allows anything but plain values, which a `_target_` could then make."""
    return any(
        kind not in (int, float, bool, str, type(None), Literal)
        and not (inspect.isclass(kind) and issubclass(kind, Collection))
        for kind in _kinds(hint)
    )


def _takes_mapping(hint: Any) -> bool:
    return any(k is Any or inspect.isclass(k) and issubclass(k, Mapping) for k in _kinds(hint))


def _kinds(hint: Any) -> list[Any]:
    """The classes of a type, without what is in them: dict | None for dict[str, int] | None."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    return [typing.get_origin(option) or option for option in options]


def _choices(hint: Any) -> list[str]:
    """The names that a type has to choose from."""
    literal = [o for o in (hint, *typing.get_args(hint)) if typing.get_origin(o) is Literal]
    return [str(name) for option in literal for name in typing.get_args(option)]


def _options(hint: Any) -> tuple[Any, ...]:
    is_choice = typing.get_origin(hint) is Literal
    return typing.get_args(hint) if is_choice else (in_words(hint),)


def in_words(hint: Any) -> str:
    """A type as a user would say it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(dict.fromkeys(map(str, inner)))
    if origin in (typing.Union, types.UnionType):
        options = [str(option) for hint in inner for option in _options(hint)]
        return " or ".join(dict.fromkeys(options))
    if origin is abc.Callable or inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a group of settings"
    if inspect.isclass(origin) and issubclass(origin, Collection):
        many = {int: "integers", float: "numbers", str: "texts"}
        return f"a list of {many.get(inner[0]) or in_words(inner[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "null" if hint is type(None) else getattr(hint, "__name__", str(hint)))
