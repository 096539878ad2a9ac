"""The table of settings: it names what there is, and all that repeats it says the same."""

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from commandline.arguments import arguments_of
from commandline.places import CONFIGS
from commandline.settings import DECIDED, GROUPS, TABLE, Role, below, names, role_of
from commandline.settings_table import choices
from commandline.signatures import Evaluate
from vae_lab.drawing import report
from vae_lab.evaluation import PARTS, Settings


def leaves(node, prefix=""):
    for name, child in node.items():
        yield f"{prefix}{name}"
        if isinstance(child, dict):
            yield from leaves(child, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def known():
    """All names that can be typed, whatever was chosen from the groups."""
    found = {*GROUPS, *leaves(OmegaConf.to_container(OmegaConf.load(CONFIGS / "train.yaml")))}
    for file in CONFIGS.glob("*/*.yaml"):
        tree = OmegaConf.to_container(OmegaConf.load(file))
        found.update(leaves(tree, f"{file.parent.name}."))
        found |= {
            f"{file.parent.name}.{n}" for n in arguments_of(tree.get("_target_", "builtins.object"))
        }
    return found


def test_every_row_is_a_setting(known):
    assert not [name for name in TABLE if name not in known and name not in DECIDED]


def test_every_group_has_a_row():
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert folders - {"hydra"} == {name for name in GROUPS if choices(name)}
    assert all(group.optional for name, group in GROUPS.items() if not choices(name))


def test_a_role_is_that_of_the_next_row_above():
    assert role_of("save.keep") is Role.WATCHES and role_of("seed") is Role.MAKES
    assert role_of("data.binarize") is Role.MAKES and role_of("data.root") is Role.PLACES
    assert role_of("trainer.strategy.timeout.minutes") is Role.WORKS
    assert names(Role.ASKS)[:2] == ["task", "checkpoint"]
    assert "evaluate.images" not in names(Role.ASKS)
    assert {"root", "cache_dir"} < below("data").keys()


def test_the_library_says_the_same():
    """It imports nothing of the command line's."""
    roles = (Role.ASKS, Role.WATCHES, Role.PLACES)
    beside = {name for name, row in TABLE.items() if row.role in roles and "." not in name}
    assert set(report.BESIDE) == beside
    assert set(report.PLACES) == {name.rpartition(".")[2] for name in names(Role.PLACES)}


def test_the_settings_of_an_evaluation_are_typed_by_their_names():
    typed = {"memory" if name == "memory_gb" else name for name in Evaluate.__annotations__}
    assert typed < {field.name for field in fields(Settings)}
    (hint,) = [a for a in Evaluate.__annotations__["parts"].__args__ if a is not type(None)]
    assert hint.__args__[0].__args__ == PARTS


def test_the_table_imports_nothing_of_the_project():
    text = (Path(CONFIGS).parent / "commandline" / "settings.py").read_text()
    assert "from ." not in text and "from commandline" not in text
