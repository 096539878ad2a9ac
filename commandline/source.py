"""Finds what dotted names stand for in source files, and imports nothing to do so."""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NamedTuple

PLAIN = ("object", "ABC", "Generic", "Protocol")  # bases that bring neither arguments nor methods


@dataclass(frozen=True, eq=False)
class Module:
    """A source file that has been read.

    Attributes:
        names: the statement that makes each of the module's names; of an import with one alias.
        stars: the modules of which it has all names.
    """

    name: str
    path: Path
    names: dict[str, ast.stmt]
    stars: list[str]

    @property
    def package(self) -> str:
        """The package from which the module's relative imports start."""
        return self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]

    def absolute(self, level: int, name: str | None) -> str:
        """The module that `from ..name import` means in this one."""
        above = self.package.split(".")[: -(level - 1) or None] if level else []
        return ".".join([*above, *([name] if name else [])])


class Definition(NamedTuple):
    """The statement that makes a name, and its module."""

    module: Module
    statement: ast.stmt


@functools.cache
def read(name: str) -> Module | None:
    """The module of this name; None where it has no source file."""
    spec = _spec(name)
    if spec is None or not (spec.origin or "").endswith(".py"):
        return None
    path = Path(spec.origin)
    module = Module(name, path, {}, [])
    for statement in _statements(ast.parse(path.read_bytes()).body):
        _enter(module, statement)
    return module


@functools.cache
def _spec(name: str) -> ModuleSpec | None:
    """The spec of a module; unlike `importlib.util.find_spec` it does not import the parents."""
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        above = _spec(parent)
        places = None if above is None else above.submodule_search_locations
        return None if places is None else PathFinder.find_spec(name, places)
    except (ValueError, ImportError):  # a module without a spec, such as __main__
        return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, also those within a `with`, and of all branches of a choice.

    Later branches come first.
    """
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _statements(statement.orelse + statement.body)
        elif isinstance(statement, ast.Try):
            handlers = [inner for handler in statement.handlers for inner in handler.body]
            yield from _statements(handlers + statement.body + statement.orelse)
        elif isinstance(statement, ast.With):
            yield from _statements(statement.body)
        else:
            yield statement


def _enter(module: Module, statement: ast.stmt) -> None:
    match statement:
        case ast.ClassDef(name) | ast.FunctionDef(name):
            module.names[name] = statement
        case ast.Assign(targets=targets):
            module.names.update({t.id: statement for t in targets if isinstance(t, ast.Name)})
        case ast.AnnAssign(target=ast.Name(name), value=ast.expr()):
            module.names[name] = statement
        case ast.Import(aliases):
            for alias in aliases:
                name = alias.asname or alias.name.partition(".")[0]
                module.names[name] = ast.copy_location(ast.Import([alias]), statement)
        case ast.ImportFrom(source, aliases, level):
            for alias in aliases:
                one = ast.copy_location(ast.ImportFrom(source, [alias], level), statement)
                module.names[alias.asname or alias.name] = one
            if aliases[0].name == "*":
                module.stars.append(module.absolute(level, source))


def find(target: str) -> Definition | Module | None:
    """The definition or module that a dotted name stands for; None where no source says it."""
    parent, _, name = target.rpartition(".")
    module = read(parent) if parent else None
    return read(target) if module is None else lookup(module, name)


def lookup(module: Module, name: str) -> Definition | Module | None:
    """The definition or module that a name means in a module, wherever it is defined."""
    match module.names.get(name):
        case None:
            found = (lookup(m, name) for m in map(read, module.stars) if m is not None)
            return next(filter(None, found), None) or read(f"{module.name}.{name}")
        case ast.Import([ast.alias(source, asname)]):
            return read(source if asname else source.partition(".")[0])
        case ast.ImportFrom(source, [ast.alias(original)], level):
            origin = module.absolute(level, source)
            if origin == module.name:  # a package that names its own submodule
                return read(f"{origin}.{original}")
            return find(f"{origin}.{original}")
        case statement:
            return Definition(module, statement)


def bases(definition: Definition) -> Iterator[Definition | None]:
    """A class and all that it derives from, in the order in which Python looks; None for one of
    which there is no source. Of a class with one base, that is read when it is asked for."""
    yield definition
    above = _direct(definition)
    if len(above) == 1 and above[0] is not None:
        yield from bases(above[0])
        return
    found = [one for base in above for one in ([None] if base is None else bases(base))]
    yield from (one for at, one in enumerate(found) if one is None or one not in found[at + 1 :])


def _direct(definition: Definition) -> list[Definition | None]:
    """The bases that a class names."""
    written = [b.value if isinstance(b, ast.Subscript) else b for b in definition.statement.bases]
    named = [b for b in written if ast.unparse(b).rpartition(".")[2] not in PLAIN]
    found = [_named(definition.module, base) for base in named]
    return [one if isinstance(one, Definition) and _is_class(one) else None for one in found]


def _is_class(definition: Definition) -> bool:
    return isinstance(definition.statement, ast.ClassDef)


def _named(module: Module, expression: ast.expr) -> Definition | Module | None:
    """The definition or module that `name` or `package.name` stands for."""
    if isinstance(expression, ast.Name):
        return lookup(module, expression.id)
    if isinstance(expression, ast.Attribute):
        owner = _named(module, expression.value)
        return lookup(owner, expression.attr) if isinstance(owner, Module) else None
    return None
