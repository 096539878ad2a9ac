"""The examples in the library's docstrings are run as they stand, each in a session of its own."""

import doctest
import importlib
from pathlib import Path

import pytest

import vae_lab
from vae_lab import estimators, latents, likelihoods

ROOT = Path(vae_lab.__file__).parent


def examples():
    """The docstrings with a `>>>` in them."""
    for path in sorted(ROOT.rglob("*.py")):
        if ">>>" in path.read_text():
            name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
            module = importlib.import_module(name.removesuffix(".__init__"))
            for found in doctest.DocTestFinder(exclude_empty=True).find(module):
                if found.examples:
                    yield pytest.param(found, id=found.name)


@pytest.fixture(scope="module")
def beginning():
    """What the package says that each of its examples begins with."""
    (lines,) = doctest.DocTestFinder(recurse=False).find(estimators)
    return lines.examples


@pytest.mark.parametrize("example", list(examples()))
def test_what_an_example_prints(example, beginning):
    if example.name.startswith(f"{estimators.__name__}."):
        example.globs, example.examples = {}, beginning + example.examples
    printed = []
    doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert not printed, "".join(printed)


PARTS = [getattr(module, name) for module in (latents, likelihoods) for name in module.__all__]


@pytest.mark.parametrize("cls", [*estimators.catalog(), *PARTS])
def test_every_part_has_an_example(cls):
    assert ">>>" in cls.__doc__
