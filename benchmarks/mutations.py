"""Would the tests notice? Breaks the estimators one line at a time and runs the tests on each.

python benchmarks/mutations.py [--module rebar] [--most 6] [--list]

A mutant has one sign turned, one detach left out, or one constant changed, somewhere in the code of
an estimator (not in what it says or in its default arguments). It is killed if a test fails. What
survives is printed: either a gap in the tests, or a change that changes nothing. So is one whose
tests did not come to an end, which proves nothing.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import io
import multiprocessing
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "vae_lab" / "estimators"
SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Lt: ast.Gt, ast.Gt: ast.Lt}
VERDICTS = {0: "survived", 1: "killed", 2: "killed"}  # by pytest's exit code
BATTERY = ("test_estimators", "test_estimator_inputs", "test_estimator_transforms")
UNTOUCHED = {"__init__", "base.py"}  # arguments are checked elsewhere; the contract is everybody's


class Mutate(ast.NodeTransformer):
    """Changes the n-th place that can be changed; `what` says how, or stays None past the last."""

    def __init__(self, place: int) -> None:
        self.place, self.seen, self.what = place, -1, None

    def _here(self, node: ast.AST, change: str) -> bool:
        self.seen += 1
        if self.seen == self.place:
            self.what = f"line {node.lineno}: {change}"
        return self.seen == self.place

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name not in UNTOUCHED and not node.name.startswith(("refus", "_refus")):
            docstring = ast.get_docstring(node) is not None
            node.body[docstring:] = [self.visit(line) for line in node.body[docstring:]]
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        other = SIGNS.get(type(node.op))
        if other and self._here(node, f"{type(node.op).__name__} becomes {other.__name__}"):
            node.op = other()
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        other = SIGNS.get(type(node.ops[0]))
        if other and self._here(node, f"{type(node.ops[0]).__name__} becomes {other.__name__}"):
            node.ops[0] = other()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            if self._here(node, "minus left out"):
                return node.operand
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "detach":
            if self._here(node, "detach left out"):
                return node.func.value
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, float) and self._here(node, f"{node.value} times 1.5"):
            return ast.copy_location(ast.Constant(node.value * 1.5 or 1.0), node)
        return node


def mutants(path: Path, most: int, seed: int) -> Iterator[tuple[str, ast.Module]]:
    """Up to `most` mutants of a module, drawn without replacement."""
    tree = ast.parse(path.read_text())
    counter = Mutate(-1)
    counter.visit(copy.deepcopy(tree))
    places = range(counter.seen + 1)
    for place in sorted(random.Random(seed).sample(places, min(most, len(places)))):
        mutation = Mutate(place)
        mutant = ast.fix_missing_locations(mutation.visit(copy.deepcopy(tree)))
        yield mutation.what, mutant


def killed(name: str, mutant: ast.Module, tests: list[str], queue: multiprocessing.Queue) -> None:
    """In a process of its own: puts the mutant in the module's place and runs the tests."""
    import pytest

    importlib.import_module("vae_lab.estimators")
    module = importlib.import_module(f"vae_lab.estimators.{name}")
    old = dict(vars(module))
    exec(compile(mutant, f"{name}.py", "exec"), vars(module))
    for other in list(sys.modules.values()):  # who imported something from it has the old one
        if getattr(other, "__name__", "").startswith("vae_lab.") and other is not module:
            for key in set(vars(other)) & set(old):
                if vars(other)[key] is old[key]:
                    setattr(other, key, getattr(module, key))
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    queue.put(int(code))


def tests_of(name: str) -> list[str]:
    """The module's own tests, and its classes' rows of the battery."""
    module = importlib.import_module(f"vae_lab.estimators.{name}")
    package = importlib.import_module("vae_lab.estimators")
    classes = [c.__name__ for c in package.catalog() if c.__module__ == module.__name__]
    users = {p.stem for p in FOLDER.glob("*.py") if f"from .{name} import" in p.read_text()}
    words = classes or [c.__name__ for c in package.catalog() if _stem(c) in users]
    named = re.compile(rf"estimators\.{name}\b|\b({'|'.join(classes or [name])})\b")
    slow = (*BATTERY, "test_configs", "test_train")
    files = [p for p in (ROOT / "tests").glob("test_*.py") if p.stem not in slow]
    files = [p for p in files if p.stem == f"test_{name}" or named.search(p.read_text())]
    expression = f"({' or '.join(words)}) and not nested and not compiled"
    files += [ROOT / "tests" / f"{stem}.py" for stem in BATTERY]
    return [*map(str, files), "-k", f"{expression} or not ({' or '.join(BATTERY)})"]


def _stem(cls: type) -> str:
    return cls.__module__.rpartition(".")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--module", help="only this one, such as rebar")
    parser.add_argument("--most", type=int, default=6, help="mutants of one module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=900, help="the time for one mutant's tests")
    parser.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    asked = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    context = multiprocessing.get_context("fork")  # torch is imported once
    total, left = 0, []
    for path in sorted(FOLDER.glob("*.py")):
        if path.name in UNTOUCHED | {"__init__.py"} or asked.module not in (None, path.stem):
            continue
        for what, mutant in mutants(path, asked.most, asked.seed):
            total += 1
            if asked.list:
                print(path.name, what)
                continue
            began, queue = time.perf_counter(), context.Queue()
            arguments = (path.stem, mutant, tests_of(path.stem), queue)
            process = context.Process(target=killed, args=arguments)
            process.start()
            process.join(asked.seconds)
            verdict = "unfinished" if queue.empty() else VERDICTS.get(queue.get(), "unfinished")
            process.kill()
            if verdict != "killed":
                left.append(f"{verdict}: {path.name} {what}")
            seconds = time.perf_counter() - began
            print(f"{verdict:10} {path.name} {what} ({seconds:.0f} s)", flush=True)
    print(f"{total - len(left)} of {total} mutants killed", *left, sep="\n")


if __name__ == "__main__":
    main()
