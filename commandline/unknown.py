"""Stand-ins for a rehearsal: for values that are not known in it, and for functions of Python that
would ask such a value something or have an effect."""

import functools
import pathlib
from abc import ABCMeta
from collections.abc import Callable, Iterator
from types import SimpleNamespace, UnionType
from typing import Any, NoReturn

EFFECTS = ("breakpoint", "compile", "eval", "exec", "exit", "input", "open", "print", "quit")
WRITES = ("chmod", "hardlink_to", "lchmod", "link_to", "mkdir", "open", "rename", "replace")
WRITES += ("rmdir", "symlink_to", "touch", "unlink", "write_bytes", "write_text")


class Undecided(BaseException):
    """It depends on what is not known yet. No `except Exception` of the code at hand takes it."""


class Unknown:
    """A value that only the run itself will know."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Unknown()

    def __call__(self, *_: Any, **__: Any) -> Any:
        return Unknown()

    def __enter__(self) -> Any:
        return Unknown()

    def __exit__(self, *_: Any) -> None:
        """Nothing to do."""

    @property
    def __class__(self) -> NoReturn:  # what isinstance asks for
        raise Undecided


def _undecided(*_: Any) -> NoReturn:
    raise Undecided


QUESTIONS = ("bool", "int", "float", "index", "complex", "len", "iter", "contains", "hash", "str")
QUESTIONS += ("repr", "format", "eq", "ne", "lt", "le", "gt", "ge", "round", "trunc", "fspath")
VALUES = ("getitem", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow")
VALUES += ("rpow", "neg", "abs", "matmul", "rmatmul", "and", "rand", "or", "ror", "invert", "mod")
for _name in QUESTIONS:
    setattr(Unknown, f"__{_name}__", _undecided)
for _name in VALUES:
    setattr(Unknown, f"__{_name}__", lambda *_: Unknown())


class Outside(ABCMeta):
    """A stand-in for anything that another library names.

    It may be a class, so one can derive from it; a class that one's own code derives from it is a
    class like any other.
    """

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if not _is_unknown(cls):
            raise AttributeError(name)
        return outside(f"{cls.__module__}.{cls.__qualname__}.{name}")

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return Unknown() if _is_unknown(cls) else super().__call__(*arguments, **options)

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __instancecheck__(cls, instance: Any) -> bool:
        return _is_instance(instance, cls)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return _is_subclass(subclass, cls)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "pow"):
    setattr(Outside, f"__{_name}__", lambda *_: Unknown())
for _name in ("bool", "int", "float", "len", "iter", "contains", "lt", "le", "gt", "ge"):
    setattr(Outside, f"__{_name}__", _undecided)


def _is_unknown(cls: type) -> bool:
    return cls is Unknown or "is_unknown" in vars(cls)


def _derives(cls: Any) -> bool:
    """Whether a class has bases of which nobody knows what they are."""
    return any(map(_is_unknown, getattr(cls, "__mro__", ())))


@functools.cache
def outside(name: str) -> Any:
    module, _, last = name.rpartition(".")
    members = {
        "is_unknown": True,
        "__module__": module,
        "__init__": _accept,
        "__getattr__": _member,
    }
    return Outside(last, (), members)


def _accept(self: Any, *_: Any, **__: Any) -> None:
    """Takes any arguments: nobody knows which ones another library's constructor refuses."""


def _member(self: Any, name: str) -> Any:
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    return Unknown()


def _is(one: Any, other: Any) -> bool:
    """`one is other`; a value of another library may also be None, or the same under two names."""
    if one is other:
        return True
    for a, b in ((one, other), (other, one)):
        if type(a) is Unknown or (type(a) is Outside and _is_unknown(a) and not _is_known_class(b)):
            raise Undecided
    return False


def _is_known_class(value: Any) -> bool:
    return issubclass(type(value), type) and not _is_unknown(value)


def _is_instance(value: Any, kinds: Any) -> bool:
    return _is_one(type(value), kinds, lambda kind: isinstance(value, kind))


def _is_subclass(cls: Any, kinds: Any) -> bool:
    return _is_one(cls, kinds, lambda kind: issubclass(cls, kind))


def _is_one(cls: Any, kinds: Any, asked: Callable[[Any], bool]) -> bool:
    """Python's own classes are known to be none of another library's."""
    every = [*_each(kinds)]
    if any(kind in type.mro(cls) for kind in every):
        return True
    unknown = [kind for kind in every if _derives(kind)]
    if _derives(cls) or (unknown and cls.__module__ != "builtins"):
        raise Undecided
    return any(asked(kind) for kind in every if kind not in unknown)


def _each(kinds: Any) -> Iterator[Any]:
    if type(kinds) is Unknown:
        raise Undecided
    several = kinds.__args__ if type(kinds) is UnionType else kinds
    if type(several) is not tuple:
        yield kinds
    else:
        for kind in several:
            yield from _each(kind)


def _has(value: Any, name: str) -> bool:
    _check_decided(value, name)
    return hasattr(value, name)


def _get(value: Any, name: str, *default: Any) -> Any:
    if default:
        _check_decided(value, name)
    return getattr(value, name, *default)


def _check_decided(value: Any, name: str) -> None:
    """Raises Undecided if a value may have an attribute from bases that nobody knows."""
    cls = value if isinstance(value, type) else type(value)
    own = [c for c in cls.__mro__ if not _is_unknown(c)]
    found = any(name in vars(c) for c in own) or name in getattr(value, "__dict__", {})
    if _derives(cls) and not found:
        raise Undecided


class _Path(type(pathlib.Path())):  # type: ignore[misc]
    """A path that can be looked at."""


for _name in WRITES:
    setattr(_Path, _name, _undecided)
_Path.__name__ = type(pathlib.Path()).__name__  # as it is shown

_as_path = {"Path": _Path, _Path.__name__: _Path}
MODULES = {"pathlib": SimpleNamespace(**vars(pathlib) | _as_path)}
BUILTINS = {name: Unknown() for name in EFFECTS}
BUILTINS |= {"isinstance": _is_instance, "issubclass": _is_subclass}
BUILTINS |= {"__is__": _is, "hasattr": _has, "getattr": _get}
