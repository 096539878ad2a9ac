"""Where a package is missing that an extra installs, one line says what to type."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch

import vae_lab
from vae_lab import loggers
from vae_lab.evaluation import disentanglement, representation
from vae_lab.storage import sources

FOLDER = Path(vae_lab.__file__).parent
ALWAYS = {*sys.stdlib_module_names, "torch", "numpy", "safetensors"}  # by pyproject.toml
ASKED = {  # another line says so, or another module was imported before
    *("export.py", "evaluation/features.py", "evaluation/distance.py"),
    *(
        path.relative_to(FOLDER).as_posix()
        for folder in ("callbacks", "lightning")
        for path in (FOLDER / folder).glob("[!_]*.py")
    ),
}
DATA = torch.arange(40.0).view(20, 2), torch.arange(20).view(20, 1) % 2
CALLS = {
    "wandb: push": ("wandb", lambda: sources.push(Path(), "wandb:a/b/c")),
    "wandb: fetch": ("wandb", lambda: sources.resolve("wandb:a/b/c:latest")),
    "logger=wandb": ("wandb", lambda: loggers.wandb_logger("x")),
    "linear_probe": ("sklearn", lambda: representation.linear_probe(*probe(), *probe())),
    "dci": ("sklearn", lambda: disentanglement.dci(*DATA)),
    "sap": ("sklearn", lambda: disentanglement.sap(*DATA, categorical=[0])),
}


def probe():
    return DATA[0], DATA[1][:, 0]


def below(name):
    return [loaded for loaded in sys.modules if f"{loaded}.".startswith(f"{name}.")]


def hide(package, monkeypatch):
    for name in {package, *below(package)}:
        monkeypatch.setitem(sys.modules, name, None)


def imports(tree, guarded=False, inside=False):
    """(package, under a guard, in a function) of every import that is carried out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((a.name.partition(".")[0], guarded, inside) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], guarded, inside
        guard = isinstance(node, ast.With) and "needs" in ast.dump(node.items[0])
        within = inside or isinstance(node, ast.FunctionDef)
        yield from imports(node, guarded or guard, within)


def optional():
    """(file, package, under a guard, in a function)"""
    for path in sorted(FOLDER.rglob("*.py")):
        for package, *where in imports(ast.parse(path.read_text())):
            if package not in ALWAYS:
                yield (path.relative_to(FOLDER).as_posix(), package, *where)


def test_every_import_of_an_optional_package_says_what_to_type():
    bare = {(file, package) for file, package, guarded, _ in optional() if not guarded}
    again = {
        ("loggers.py", "wandb"),  # of a logger that there is
        ("data/tables.py", "pyarrow"),  # of a table of its
        ("fitting/progress.py", "rich"),  # or else there are lines
    }
    assert {pair for pair in bare if pair[0] not in ASKED} == again


TOP = sorted({(f, p) for f, p, guarded, inside in optional() if guarded and not inside})
TOP += [("callbacks/__init__.py", p) for p in ("pytorch_lightning", "rich", "torchvision", "PIL")]


@pytest.mark.parametrize(("file", "package"), TOP)
def test_a_module_names_the_extra_that_it_needs(file, package, monkeypatch):
    name = f"vae_lab.{file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
    for loaded in below(name):
        monkeypatch.delitem(sys.modules, loaded)
    hide(package, monkeypatch)
    of_page = [f"explorer/{name}.py" for name in ("page", "panels", "plots", "widgets", "window")]
    extra = "explore" if file in of_page else "train"
    line = rf"^.+ needs {package}, which is not installed: type pip install -e '\.\[{extra}\]'$"
    with pytest.raises(ImportError, match=line):
        importlib.import_module(name)


@pytest.mark.parametrize(("package", "call"), CALLS.values(), ids=CALLS)
def test_a_function_names_the_extra_that_it_needs(package, call, monkeypatch):
    hide(package, monkeypatch)
    with pytest.raises(ImportError, match=rf"needs {package}.*: type pip install -e '.\[train\]'"):
        call()
