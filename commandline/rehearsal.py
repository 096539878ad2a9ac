"""Foresees what a constructor would refuse, from its source and before torch is imported.

What a class refuses stands in its constructor and nowhere else. Here the constructors of one's own
code run on the values of a config while everything that comes from other libraries is unknown. What
depends on something unknown is left undecided, so a refusal that is foreseen is the one that would
have come, word for word.
"""

import ast
import builtins
import copy
import functools
import importlib
import inspect
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .source import Module, read
from .unknown import BUILTINS, MODULES, Undecided, Unknown, outside

# Of Python's own modules those that compute and have no effects; the others are unknown as well.
PLAIN = {"abc", "collections", "contextlib", "dataclasses", "datetime", "difflib", "enum"}
PLAIN |= {"functools", "itertools", "math", "numbers", "operator", "re", "string"}
PLAIN |= {"types", "typing"}
FOLLOWED = ("torch.optim.", "PIL.ImageColor.")  # of other libraries; they only compare and look up
INSTALLED = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}


class Refused(Exception):
    """The error of a constructor, with its place in the config."""


def foresee(target: str, arguments: Mapping[str, Any], root: Path) -> str | None:
    """The error that a function of one's own code would raise; None if none is known to be raised.

    Args:
        target: the dotted name of the function.
        arguments: its arguments.
        root: the folder of one's own code.
    """
    try:
        _call(_get(target, root), arguments)
    except Undecided:
        return None
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    except Exception:  # of something unknown
        return None
    return None


def refusal(
    node: Any, path: str, root: Path, given: tuple[str, ...] = (), then: str | None = None
) -> str | None:
    """The error that making everything below a node of the config would raise, or None.

    Args:
        node: plain values.
        path: of the node in the config.
        root: the folder of one's own code.
        given: arguments of the node that only the run can give.
        then: a method that is called of what has been made, if it has one.
    """
    try:
        made = _made(node, path, root, given)
        if then is not None and hasattr(type(made), then):
            getattr(made, then)()
    except Refused as refused:
        return str(refused)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    except (Exception, Undecided):
        return None
    return None


def _made(node: Any, path: str, root: Path, given: tuple[str, ...] = ()) -> Any:
    """Makes the objects of a node as Hydra does, the innermost first."""
    if isinstance(node, list):
        return [_made(child, f"{path}.{at}", root) for at, child in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    children = {name: _made(child, f"{path}.{name}", root) for name, child in node.items()}
    if "_target_" not in node:
        return children
    arguments = {name: child for name, child in children.items() if not name.startswith("_")}
    try:
        made = _call(_get(node["_target_"], root), arguments, given)
    except (ValueError, OSError) as error:
        raise Refused(f"{' '.join(str(error).split())} (in {path})") from None
    except (Exception, Undecided):
        return Unknown()
    return Unknown() if node.get("_partial_") else made


def _call(made: Any, arguments: Mapping[str, Any], given: tuple[str, ...] = ()) -> Any:
    """With what the config does not say, as only the run knows it, unknown."""
    function = made.__init__ if inspect.isclass(made) else made
    needed = [
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    unknown = {name: Unknown() for name in (*needed, *given) if name != "self"}
    return made(**unknown | dict(arguments))


def _get(target: str, root: Path) -> Any:
    package, _, name = target.rpartition(".")
    return getattr(_module(package, root), name)


class _Names(dict[str, Any]):
    """The names of a module: each is made, by its own statement, when it is asked for. They stand
    where Python looks last, with its builtins, as it asks nobody about a dictionary of globals."""

    def __init__(self, module: Module, root: Path) -> None:
        super().__init__(vars(builtins) | BUILTINS)
        self.module, self.root = module, root
        self["__import__"] = self._import
        self.made = {
            "__name__": module.name,
            "__file__": str(module.path),
            "__package__": module.package,
            "__builtins__": self,
        }

    def __getitem__(self, name: str) -> Any:
        if name in self.made:
            return self.made[name]
        statement = self.module.names.get(name)
        if statement is None:
            return super().__getitem__(name)
        tree = ast.Module([_Bare().visit(copy.deepcopy(statement))], [])
        exec(compile(ast.fix_missing_locations(tree), self.module.path, "exec"), self.made)
        return self.made[name]

    def _import(
        self, name: str, names: Any = None, local: Any = None, wanted: Any = (), level: int = 0
    ) -> Any:
        absolute = self.module.absolute(level, name)
        return _module(absolute if wanted else absolute.partition(".")[0], self.root)


class _Bare(ast.NodeTransformer):
    """Functions without the types of their arguments, which decide nothing; and `is` as a function,
    as it asks nobody either."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Compare(left, [ast.Is() | ast.IsNot() as operator], [right]):
                same = ast.Call(ast.Name("__is__", ast.Load()), [left, right], [])
                return same if isinstance(operator, ast.Is) else ast.UnaryOp(ast.Not(), same)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


class _Package:
    """A module of one's own code, as an import gives it."""

    def __init__(self, module: Module, root: Path) -> None:
        self._names, self._root = _Names(module, root), root

    def __getattr__(self, name: str) -> Any:
        try:
            return self._names[name]
        except KeyError:
            inner = f"{self._names.module.name}.{name}"
            if read(inner) is None:
                raise AttributeError(name) from None
            return _module(inner, self._root)


def _is_below(path: Path, root: Path) -> bool:
    """Whether a file is one's own code, and not installed in an environment in the same folder."""
    return path.is_relative_to(root) and not any(map(path.is_relative_to, INSTALLED))


@functools.cache
def _module(name: str, root: Path) -> Any:
    if name in MODULES:
        return MODULES[name]
    if name.partition(".")[0] in PLAIN:
        return importlib.import_module(name)
    module = read(name)
    own = module is not None and (f"{name}.".startswith(FOLLOWED) or _is_below(module.path, root))
    return _Package(module, root) if own else outside(name)
