"""The arguments of what a config names by `_target_`, and their types, read from its source.

Nothing is imported for it, so that a mistyped setting is answered before torch has been.
"""

import ast
import builtins
import copy
import functools
import importlib
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra.utils import get_object

from .source import Definition, Module, bases, find, lookup, read

Function = ast.FunctionDef
Written = dict[str, tuple[ast.expr | None, Module]]  # arguments, and where they are annotated
CLASSES = ("torch.Tensor",)  # known to be one, which saves reading 130 kB


class Types(Mapping[str, Any]):
    """The types of a target's arguments by their names; each is looked up when it is asked for."""

    def __init__(self, written: Written) -> None:
        self._written = written
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            annotation, module = self._written[name]
            self._found[name] = _hint(annotation, _Names(module))
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._written)

    def __len__(self) -> int:
        return len(self._written)


@functools.cache
def arguments_of(target: str) -> Mapping[str, Any]:
    """The arguments of a target with their types; with a ** argument, also those of its bases."""
    found = find(target)
    if not isinstance(found, Definition):
        return imported(target)
    if isinstance(found.statement, Function):
        return Types(_arguments(found, found.statement))
    if not isinstance(found.statement, ast.ClassDef):
        return imported(target)
    return _of_class(target, found)


def _of_class(target: str, definition: Definition) -> Mapping[str, Any]:
    found: Written = {}
    for cls in bases(definition):
        if cls is None:  # another language's, or made while the program runs
            return imported(target)
        if _is_dataclass(cls):
            return Types(_fields(cls) | found)
        if (init := _method(cls, "__init__")) is None:
            continue
        found = _arguments(cls, init) | found
        found.pop(_positional(init)[0].arg, None)
        if init.args.kwarg is None:
            break
    return Types(found)


def attribute(target: str, name: str) -> Any:
    """A constant of a class or of the first base that has it; None where there is none."""
    found = find(target)
    classes = bases(found) if isinstance(found, Definition) else []
    for statement in (s for c in classes if c is not None for s in c.statement.body):
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id)], value=value)
                | ast.AnnAssign(target=ast.Name(id), value=ast.expr() as value)
            ) if id == name:
                try:
                    return ast.literal_eval(value)
                except ValueError:  # it is computed
                    return getattr(get_object(target), name)
    return None


def imported(target: str) -> dict[str, Any]:
    """The arguments read off the imported object itself, where there is no source to be read."""
    logging.getLogger("hydra.utils").disabled = True  # what it says is raised as well
    thing = get_object(target)
    if not inspect.isclass(thing):
        return _inspected(thing)
    found: dict[str, Any] = {}
    for cls in inspect.getmro(thing):
        if "__init__" in vars(cls):
            found = _inspected(cls.__init__) | found
            parameters = inspect.signature(cls.__init__).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return found


def _inspected(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # another library's names that exist for type checkers only
        hints = {}
    named = {
        name: hints.get(name, Any)
        for name, p in inspect.signature(function).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    named.pop("self", None)
    return named


def _arguments(where: Definition, function: Function) -> Written:
    every = [*_positional(function), *function.args.kwonlyargs]
    return {argument.arg: (argument.annotation, where.module) for argument in every}


def _positional(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args]


def _method(cls: Definition, name: str) -> Function | None:
    functions = (s for s in cls.statement.body if isinstance(s, Function))
    return next((f for f in functions if f.name == name), None)


def _is_dataclass(cls: Definition) -> bool:
    decorators = [ast.unparse(d) for d in cls.statement.decorator_list]
    return any(d.partition("(")[0].endswith("dataclass") for d in decorators)


def _fields(definition: Definition) -> Written:
    """The fields of a dataclass with their annotations, those of its bases first."""
    found: Written = {}
    classes = [cls for cls in bases(definition) if cls is not None and _is_dataclass(cls)]
    for cls in reversed(classes):
        for name, annotation in _annotated(cls):
            found[name] = annotation, cls.module
    return found


def _annotated(cls: Definition) -> Iterator[tuple[str, ast.expr]]:
    for statement in cls.statement.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(name), annotation=annotation):
                if "ClassVar" not in ast.unparse(annotation):
                    yield name, annotation


def _hint(annotation: ast.expr | None, names: "_Names") -> Any:
    """A type as an object. A class of which no more than its name is needed stands as one that has
    this name."""
    if annotation is None:
        return Any
    written = ast.Expression(_Unquoted().visit(copy.deepcopy(annotation)))
    try:
        found = eval(compile(ast.fix_missing_locations(written), "annotation", "eval"), names)
    except Exception:  # what only a type checker can make sense of
        return Any
    return type(None) if found is None else found


class _Unquoted(ast.NodeTransformer):
    """Without the quotes around names that are defined further below."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return node if ast.unparse(node.value).endswith("Literal") else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node


class _Names(dict[str, Any]):
    """The names of a module, as far as types go."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        if name not in self.module.names and hasattr(builtins, name):
            raise KeyError(name)
        self[name] = _type(self.module, name)
        return self[name]


def _type(module: Module, name: str) -> Any:
    statement = module.names.get(name)
    match statement:
        case ast.Import([ast.alias(source, asname)]):
            return _module(source if asname else source.partition(".")[0])
        case ast.ImportFrom(source, [ast.alias(original)], level):
            origin = module.absolute(level, source)
            if f"{origin}.{original}" in CLASSES:
                return _class(None, original)
            if origin.partition(".")[0] in sys.stdlib_module_names:
                return getattr(importlib.import_module(origin), original)
            if origin == "typing_extensions" and hasattr(typing, original):
                return getattr(typing, original)
    return _defined(lookup(module, name), name)


def _defined(found: Definition | Module | None, name: str) -> Any:
    if isinstance(found, Module):
        return _Package(found)
    match None if found is None else found.statement:
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            return _hint(value, _Names(found.module))
        case ast.ImportFrom(source, [ast.alias(original)]):
            return getattr(importlib.import_module(source or ""), original)
    return _class(found, name)


@functools.cache
def _class(found: Definition | None, name: str) -> type:
    return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


def _module(name: str) -> Any:
    if name.partition(".")[0] in sys.stdlib_module_names:
        return importlib.import_module(name)
    return _Package(read(name))


class _Package:
    """`package` in `package.Name`."""

    def __init__(self, module: Module | None) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return _class(None, name) if self._module is None else _type(self._module, name)
