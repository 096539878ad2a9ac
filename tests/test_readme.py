"""What the README says is what there is."""

import re
from pathlib import Path

from commandline.estimator_table import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def between(start, end):
    return README.split(start)[1].split(end)[0].strip()


def test_the_estimator_table_is_current():
    assert between("<!-- estimators -->", "<!-- /estimators -->") == table()


def test_every_choice_is_named():
    for group in (
        "model",
        "data",
        "latent",
        "network",
        "likelihood",
        "objective",
        "trainer",
        "experiment",
    ):
        row = re.search(rf"^\| `{group}` \|.*$", README, re.M).group()
        for file in (ROOT / "configs" / group).glob("[!_]*.yaml"):
            assert f"`{file.stem}`" in row, f"{group}={file.stem} is not in the README"


def test_the_library_example_runs():
    example = re.search(r"```python\n(import torch.*?)```", README, re.S).group(1)
    scope = {}
    exec(example, scope)
    assert scope["logits"].grad.isfinite().all()
