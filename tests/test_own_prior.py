"""A prior of one's own, typed: one class, and one file in `configs/prior/` of a checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vae_lab import VAE

PEAKS = """
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import vae_lab
from vae_lab.priors import Prior


@vae_lab.register
class Peaks(Prior):
    def __init__(self, components: int = 2) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components

    def bind(self, latent):
        self.means = nn.Parameter(torch.randn(self.components, *latent.event_shape))

    def forward(self, condition):
        alike = Categorical(logits=self.means.new_zeros(self.components))
        return MixtureSameFamily(alike, Independent(Normal(self.means, 1.0), 1))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with a prior of one's own, for `train.py` to be typed in."""
    folder, root = tmp_path_factory.mktemp("checkout"), Path(__file__).parents[1]
    for name in ("commandline", "configs", "datamodules", "models", "tasks"):
        shutil.copytree(root / name, folder / name)
    shutil.copy(root / "train.py", folder)
    (folder / "mine.py").write_text(PEAKS)
    (folder / "configs" / "prior").mkdir(exist_ok=True)
    (folder / "configs" / "prior" / "mine.yaml").write_text("_target_: mine.Peaks\ncomponents: 3\n")
    return folder


def typed(folder, *arguments):
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


SMALL = ["model=gaussian_vae", "prior=mine", "logger=csv", "trainer=cpu", "model.lr_decay=none"]
SMALL += ["data.val_size=100", "trainer.limit_train_batches=3", "network.hidden=[8]"]
SMALL += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]


def test_one_class_and_one_file_are_typed(checkout):
    done = typed(checkout, *SMALL, "run_dir=a", "trainer.max_epochs=1", "prior.components=4")
    assert done.returncode == 0, done.stderr
    release = json.loads((checkout / "a" / "release" / "config.json").read_text())
    assert release["format"] == 2 and release["prior"] == {"class": "Peaks", "components": 4}
    with pytest.raises(ValueError, match="unknown prior 'Peaks' in .*config.json; known: "):
        VAE.from_pretrained(checkout / "a")
    assert "<td>Peaks(components=4)</td>" in (checkout / "a" / "report.html").read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "prior=mime",
            "unknown prior 'mime'; did you mean mine; known: autoregressive, flow, mine",
        ),
        ("prior.component=4", "unknown setting prior.component; did you mean prior.components"),
        ("prior.components=x", "prior.components must be an integer, got 'x'"),
        ("prior.components=0", "components must be at least 1, got 0 (in model.prior)"),
        ("~prior", "a run needs prior: leave out ~prior"),
    ],
)
def test_what_is_mistyped_of_it_is_one_line(checkout, line, said):
    done = typed(checkout, *SMALL, "run_dir=none", line)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (checkout / "none").exists()


@pytest.mark.slow
def test_a_run_with_it_goes_on_to_the_bit_and_is_evaluated(checkout):
    for name, epochs in (("whole", 3), ("parts", 1)):
        done = typed(checkout, *SMALL, f"run_dir={name}", f"trainer.max_epochs={epochs}")
        assert done.returncode == 0, done.stderr
    done = typed(checkout, "resume=parts", "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr
    whole, parts = (
        checkout / name / "release" / "model.safetensors" for name in ("whole", "parts")
    )
    assert whole.read_bytes() == parts.read_bytes()
    asked = ["task=evaluate", "checkpoint=whole", "evaluate.images=100", "evaluate.samples=20"]
    done = typed(checkout, *asked)
    assert done.returncode == 0 and "aggregate_kl" in done.stdout, done.stderr
