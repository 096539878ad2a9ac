"""The arrows between the folders: who may import whom, that nobody imports in a circle, and that
one folder only knows Lightning's private parts."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import pytorch_lightning

ROOT = Path(__file__).parents[1]
FOLDERS = ("commandline", "tasks", "models", "datamodules", "vae_lab")
MAY = {  # import these folders, besides their own
    "train": {"commandline", "tasks", "vae_lab"},
    "commandline": set(),
    "tasks": {"commandline", "models", "datamodules", "vae_lab"},
    "models": {"vae_lab"},
    "datamodules": {"vae_lab"},
    "vae_lab": set(),
}
WITHOUT_HYDRA = ("models", "datamodules", "vae_lab")
ROOM = "vae_lab.lightning"  # where Lightning's private parts may be used
LOOPS = {"epoch_loop", "val_loop", "batch_progress", "epoch_progress"}  # public in name only


def modules(root: Path) -> dict[str, Path]:
    """The files of the project by the names that an import gives them."""
    paths = [root / "train.py", *(p for name in FOLDERS for p in (root / name).rglob("*.py"))]
    names = (p.relative_to(root).with_suffix("").as_posix().replace("/", ".") for p in paths)
    found = zip(names, paths, strict=True)
    return {name.removesuffix(".__init__"): path for name, path in found if path.exists()}


def imports(name: str, path: Path) -> Iterator[str]:
    """What a file imports while it runs, also within functions: modules, and names in modules."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    for node in waiting:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def arrows(root: Path) -> Iterator[tuple[str, str]]:
    """(file, what it imports): a file of the project, or a name of another library."""
    files = modules(root)
    for name, path in files.items():
        for target in imports(name, path):
            source = target.rpartition(".")[0]
            yield name, source if target not in files and source in files else target


def upward(root: Path) -> list[str]:
    """The arrows that no folder may have."""
    found = {(one, other) for one, other in arrows(root) if not _may(one, top(one), top(other))}
    return sorted(f"{one} -> {other}" for one, other in found)


def _may(name: str, folder: str, imported: str) -> bool:
    if imported in ("hydra", "omegaconf"):
        return folder not in WITHOUT_HYDRA
    return imported not in MAY or imported == folder or imported in MAY[folder]


def top(name: str) -> str:
    return name.partition(".")[0]


def circle(root: Path) -> list[str]:
    """Files that import each other in a circle, if there are any."""
    graph: dict[str, set[str]] = {name: set() for name in modules(root)}
    for one, other in set(arrows(root)):
        if other in graph and other != one:
            graph[one].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def lightnings_own() -> set[str]:
    """The attributes that Lightning's sources give a leading underscore, and the loops."""
    root = Path(pytorch_lightning.__file__).parent
    places = [root / name for name in ("core", "loops", "loggers", "trainer", "strategies")]
    text = "".join(file.read_text() for place in places for file in place.rglob("*.py"))
    return set(re.findall(r"(?:self\.|def )(_[a-z]\w*)", text)) | LOOPS


def private_uses(root: Path, private: set[str]) -> list[str]:
    """Where a file outside of the room imports, reads, sets or names a private part of Lightning.

    What an object has of its own is its own: `self._x` counts in a class of Lightning's, where the
    file nowhere defines it.
    """
    files = {n: p for n, p in modules(root).items() if not f"{n}.".startswith(f"{ROOM}.")}
    return [f"{name}: {use}" for name, path in files.items() for use in _uses(path, private)]


def _uses(path: Path, private: set[str]) -> Iterator[str]:
    text = path.read_text()
    if "lightning" not in text and "trainer" not in text:
        return
    own = set(re.findall(r"(?:self\.|def )(_\w+)(?:: .*)?(?: = |\()", text))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.ImportFrom)
            and "lightning" in (node.module or "").partition(".")[0]
        ):
            hidden = [alias.name for alias in node.names if alias.name.startswith("_")]
            if hidden or ".loops" in str(node.module):
                yield f"from {node.module}"
        elif isinstance(node, ast.Attribute) and node.attr in private - own:
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and node.value in private - own:
            yield repr(node.value)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("epoch_loop."):
            yield repr(node.value)


def test_one_room_has_lightnings_private_parts():
    private = lightnings_own()
    assert {"_current_fx_name", "_results", "_logger_connector", "_data_fetcher"} <= private
    assert private_uses(ROOT, private) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("trainer.fit_loop.max_epochs", []),
        ("trainer._results.clear()", ["trainer._results"]),
        ("trainer.fit_loop.epoch_loop.global_step", ["trainer.fit_loop.epoch_loop"]),
        ("trainer.fit_loop._should_accumulate()", ["trainer.fit_loop._should_accumulate"]),
        ("module, trainer\nmodule._current_fx_name = ''", ["module._current_fx_name"]),
        ("trainer\nsetattr(x, '_current_fx_name', 1)", ["'_current_fx_name'"]),
        ("trainer\nsaved['epoch_loop.batch_progress']", ["'epoch_loop.batch_progress'"]),
        ("from pytorch_lightning.loops import fetchers", ["from pytorch_lightning.loops"]),
        ("from lightning_fabric.x import _y", ["from lightning_fabric.x"]),
        ("from pytorch_lightning import Trainer", []),
        ("class A(lightning.B):\n def f(self): self._wandb_init", ["self._wandb_init"]),
        ("lightning\nself._results = 1\nself._results.clear()", []),
    ],
)
def test_a_private_part_outside_of_the_room_is_found(tmp_path, text, found):
    for name in ("models/base.py", "vae_lab/lightning/steps.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    uses = private_uses(tmp_path, lightnings_own())
    assert uses == [f"models.base: {use}" for use in found]


def test_no_arrow_points_up():
    assert upward(ROOT) == []


def test_there_is_no_circle():
    assert circle(ROOT) == []


def test_configs_are_yaml_only():
    files = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "__pycache__" not in path.parts} == {".yaml"}


MADE_UP = {
    "train.py": "from commandline import check",
    "commandline/__init__.py": "",
    "commandline/check.py": "from .help import text",
    "commandline/help.py": "text = ''",
    "models/base.py": "from vae_lab.vae import VAE",
    "vae_lab/__init__.py": "from .vae import VAE",
    "vae_lab/vae.py": "from . import files\nVAE = files",
    "vae_lab/files.py": "import torch",
    "vae_lab/drawing/__init__.py": "from ..vae import VAE",
}


@pytest.mark.parametrize(
    ("path", "text", "up", "round_about"),
    [
        ("vae_lab/files.py", "import torch", [], []),
        ("vae_lab/files.py", "import models", ["vae_lab.files -> models"], []),
        ("vae_lab/files.py", "def f():\n import hydra", ["vae_lab.files -> hydra"], []),
        ("models/base.py", "from omegaconf import x", ["models.base -> omegaconf.x"], []),
        ("commandline/help.py", "import vae_lab", ["commandline.help -> vae_lab"], []),
        ("train.py", "import models.base", ["train -> models.base"], []),
        (
            "vae_lab/files.py",
            "def f():\n from .vae import VAE",
            [],
            ["vae_lab.files", "vae_lab.vae"],
        ),
        ("vae_lab/files.py", "from .drawing import x", [], ["vae_lab.drawing"]),
        ("commandline/help.py", "from . import check", [], ["commandline.check"]),
        ("vae_lab/files.py", "if TYPE_CHECKING:\n from .vae import VAE", [], []),
    ],
)
def test_what_points_up_or_round_is_found(tmp_path, path, text, up, round_about):
    for name, content in (MADE_UP | {path: text}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert upward(tmp_path) == up
    found = circle(tmp_path)
    assert set(round_about) <= set(found) and bool(round_about) == bool(found)
