"""A VAE described in plain types: its parts by the names of their classes, and their arguments.

Only classes that are known can be named: those of the three packages, and a user's own after
:func:`register`. So what is built from a description is never looked up or imported by name.
"""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from . import conditions, latents, likelihoods, networks, priors
from .arguments import arguments, number
from .estimators import Estimator, catalog
from .schedules import Schedule
from .storage.sources import first_line

if TYPE_CHECKING:
    from .vae import VAE

KINDS = {
    "network": networks,
    "latent": latents,
    "likelihood": likelihoods,
    "prior": priors,
    "condition": conditions,
}
OPTIONAL = {"prior", "condition"}  # of which a VAE, and so its description, may have none
SINCE_2_IF_TRUE = {"standardize", "missing"}  # arguments that vae_lab 0.1 does not know
RELAXATION = "relaxation"  # among the facts of a card

# What a description may name.
CLASSES: dict[str, dict[str, type]] = {
    **{k: {name: getattr(module, name) for name in module.__all__} for k, module in KINDS.items()},
    RELAXATION: {cls.__name__: cls for cls in catalog()},
}

Part = TypeVar("Part", bound=type)


def register(cls: Part) -> Part:
    """Lets releases name a network, latent, likelihood, prior or condition of one's own; a
    decorator.

    .. code-block:: python

        @vae_lab.register
        class Narrow:
            def __init__(self, width: int) -> None:
                self.width = width  # every argument is kept under its own name

    A release then says `{"class": "Narrow", "width": 8}`, and is loaded wherever this class was
    imported before. Loading itself imports nothing.

    Raises:
        ValueError: it is none of the five, another class has its name, or its arguments have none.
    """
    known = CLASSES[_kind(cls)]
    other = known.get(cls.__name__, cls)
    if _address(other) != _address(cls):  # the same again is a cell or a module that is run anew
        raise ValueError(
            f"{_address(other)} has the name {cls.__name__} already: give {_address(cls)} another"
        )
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"{cls.__name__} must list its arguments by name, it has {parameter}")
    known[cls.__name__] = cls
    return cls


def _kind(cls: type) -> str:
    if not isinstance(cls, type):
        raise ValueError(f"@vae_lab.register decorates a class, got {cls!r}")
    if issubclass(cls, latents.Latent):
        return "latent"
    if issubclass(cls, likelihoods.Likelihood):
        return "likelihood"
    if issubclass(cls, priors.Prior):
        return "prior"
    if issubclass(cls, conditions.Condition):
        return "condition"
    if callable(getattr(cls, "encoder", None)) and callable(getattr(cls, "decoder", None)):
        return "network"
    raise ValueError(
        f"{cls.__name__} must be a Latent, a Likelihood, a Prior, a Condition, or a network with "
        "encoder and decoder"
    )


def _address(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within this context tensors are made on the CPU and can be trained.

    The random state of the caller does not change.
    """
    # Without an accelerator's: on the CPU nothing draws from it.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.device("cpu"):
        yield


def describe(part: object) -> dict[str, Any]:
    """A part's class and constructor arguments, each kept by the part under its own name; of a
    schedule, its present value."""
    cls = type(part)
    found = arguments(part)
    if lost := [name for name in inspect.signature(cls).parameters if name not in found]:
        raise ValueError(
            f"{cls.__name__} must keep its argument {lost[0]} as self.{lost[0]}, for a release"
        )
    values = {n: number(v.value) if isinstance(v, Schedule) else v for n, v in found.items()}
    return {"class": cls.__name__} | values


def _of_a_vae(part: object) -> dict[str, Any]:
    """:func:`describe`, as vae_lab 0.1 does it where nothing newer is used."""
    found = describe(part)
    return {n: value for n, value in found.items() if value or n not in SINCE_2_IF_TRUE}


def relaxation(facts: dict[str, Any]) -> Estimator | None:
    """The estimator of relaxed samples that trained a release, as it was then, from its card; None
    where another one did, or nothing is known of it."""
    if RELAXATION not in facts:
        return None
    with undisturbed():
        return _build(RELAXATION, facts[RELAXATION], "the card").eval()


def check_listed(vae: "VAE") -> None:
    """Refuses parts that no description may name: what is trained with them could not be loaded.

    Raises:
        ValueError: one line that says where to name the class.
    """
    for kind, part in parts(vae).items():
        cls = type(part)
        known = CLASSES[kind].get(cls.__name__)
        if known is None:
            raise ValueError(
                f"the {kind} {cls.__name__} could not be loaded from a release: decorate the class "
                "with @vae_lab.register"
            )
        if _address(known) != _address(cls):  # equal if a cell is run anew
            raise ValueError(
                f"the {kind} {cls.__name__} is {_address(cls)}, but in a release the name means "
                f"{_address(known)}: rename yours, and decorate it with @vae_lab.register"
            )


def parts(vae: "VAE") -> dict[str, object]:
    """The parts that a VAE has, by their kinds."""
    found = {kind: getattr(vae, kind) for kind in KINDS}
    return {kind: part for kind, part in found.items() if part is not None}


def blueprint(vae: "VAE") -> dict[str, Any]:
    """All that is needed to build the like of a VAE, in plain types."""
    described = {kind: _of_a_vae(part) for kind, part in parts(vae).items()}
    return {"shape": list(vae.shape), **described}


def assemble(cls: type["VAE"], plan: dict[str, Any], origin: str) -> "VAE":
    """The VAE that :func:`blueprint` described, untrained, made by the class that is given.

    Raises:
        ValueError: the description names a class that is not in vae_lab's lists, or arguments that
            the class does not take.
    """
    if missing := {"shape", *KINDS} - OPTIONAL - plan.keys():
        raise ValueError(f"{origin} lacks {', '.join(sorted(missing))}")
    made = {kind: _build(kind, plan[kind], origin) for kind in KINDS if kind in plan}
    try:
        return cls(tuple(plan["shape"]), **made)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{origin} describes no VAE: {first_line(error)}") from None


def _build(kind: str, description: Any, origin: str) -> Any:
    if not isinstance(description, dict):
        raise ValueError(f"the {kind} in {origin} must name its class, got {description!r}")
    arguments = dict(description)
    name = arguments.pop("class", None)
    known = CLASSES[kind]
    if name not in [*known]:  # it may be of any type
        hint = "; import the module that registers it first" if kind in KINDS else ""
        raise ValueError(f"unknown {kind} {name!r} in {origin}; known: {', '.join(known)}{hint}")
    try:
        return known[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the {kind} in {origin} does not fit this vae_lab: {first_line(error)}"
        ) from None


def check_described(vae: "VAE") -> dict[str, Any]:
    """Describes a VAE from which a VAE can be built that takes its weights and computes the same.

    Raises:
        ValueError: there is none, as it has parts that no release may name, or was changed after it
            was built.
    """
    check_listed(vae)
    if own := _overridden(vae):
        raise ValueError(
            f"a release would come back with vae_lab's own {shortened(own)}, not with that of "
            f"{type(vae).__name__}: put what differs into a network, latent, likelihood, prior or "
            "condition"
        )
    try:
        plan: dict[str, Any] = json.loads(json.dumps(blueprint(vae)))
    except TypeError as error:
        raise ValueError(f"the arguments of the parts must be plain: {error}") from None
    origin = "the model's own description"
    with undisturbed():
        if altered := _altered(plan, origin):
            raise ValueError(f"a part must keep its arguments as given, {altered[0]}")
        again = outline(library_class(type(vae)), plan, origin)
    if changed := _changes(vae, again):
        raise ValueError(
            f"the model was changed after it was built, in {shortened(changed)}, which no release "
            "would say: undo it (remove_parametrizations, prune.remove), or build it so by a "
            "registered network of your own"
        )
    return plan


def outline(cls: type["VAE"], plan: dict[str, Any], origin: str) -> "VAE":
    """Like :func:`assemble`, but only for names and sizes: without memory, if that is possible."""
    try:
        with torch.device("meta"):
            return assemble(cls, plan, origin)
    except Exception:  # an own constructor that reads a tensor's values, which there has none
        return assemble(cls, plan, origin)


def library_class(cls: type) -> type["VAE"]:
    """:class:`vae_lab.VAE` itself, of which `cls` may be a subclass."""
    return next(base for base in cls.__mro__ if base.__module__ == f"{__package__}.vae")


def _overridden(vae: "VAE") -> list[str]:
    """Names of the members of VAE that a subclass, or the instance itself, has replaced."""
    mro, ours = type(vae).__mro__, library_class(type(vae))
    spaces = [vars(vae), *map(vars, mro[: mro.index(ours)])]
    known = {name for cls in mro[mro.index(ours) : mro.index(nn.Module)] for name in vars(cls)}
    names = {name for space in spaces for name in space if name in known}
    return sorted(name for name in names if not name.startswith("__"))


def _altered(plan: dict[str, Any], origin: str) -> list[str]:
    """The parts that describe themselves in another way once they are built anew."""
    again = {k: _of_a_vae(_build(k, plan[k], origin)) for k in KINDS if k in plan}
    kept = json.loads(json.dumps(again))
    return [f"got {plan[k]} and keeps {kept[k]}" for k in kept if kept[k] != plan[k]]


def _changes(vae: "VAE", again: "VAE") -> list[str]:
    """The names of modules and tensors that are not the same in both."""
    pairs = zip(_forms(vae), _forms(again), strict=True)
    return [name for a, b in pairs for name in {**a, **b} if a.get(name) != b.get(name)]


def _forms(vae: "VAE") -> tuple[dict[str, Any], dict[str, Any]]:
    """The form of each module and of each tensor by its name: class or shape, but no values."""
    modules = {name: _form(m) for name, m in vae.named_modules(remove_duplicate=False) if name}
    state = vae.state_dict(keep_vars=True)
    first = {id(t): name for name, t in reversed(state.items())}  # of those that are one
    tensors = {
        name: "lazy" if is_lazy(t) else (t.shape, t.is_floating_point(), first[id(t)])
        for name, t in state.items()
    }
    return modules, tensors


def _form(module: nn.Module) -> tuple[str, str, bool, int]:
    """Its class, torch's arguments, and what was put in place of its forward, or around it."""
    ours = type(module).__module__.startswith("torch.nn.")
    hooks = len(module._forward_pre_hooks) + len(module._forward_hooks)
    replaced = "forward" in vars(module)
    return _address(type(module)), module.extra_repr() if ours else "", replaced, hooks


def shortened(items: list[str], shown: int = 5) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
