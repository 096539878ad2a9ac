"""What `checkpoint` may name, and the data that comes with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_faults import SMOKE, start

from commandline.quoting import as_meant
from commandline.refusals import checkpoints_of
from tasks import table
from tasks.names import name_of, names_of
from tasks.trained import trained
from vae_lab import VAE, pretrained
from vae_lab.estimators import GumbelSoftmax

STOCHASTIC = [*SMOKE, "data.binarize=stochastic", "data.val_size=100", "report=false"]
ZOO = "gumbel_vae-digits"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that is not the default one."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start(patch, *STOCHASTIC, "run_dir=x", "seed=3")
    return folder


@pytest.fixture
def loaded(runs, run, tmp_path, monkeypatch):
    """What each of some sources gives, where a line is typed; or the error.

    `x` is a run, `release` one that was sent here, `stripped` the same without a card.
    """
    shutil.copytree(runs / "x", tmp_path / "x")
    for name in ("release", "stripped"):
        shutil.copytree(runs / "x" / "release", tmp_path / name)
    (tmp_path / "empty").mkdir()
    file = tmp_path / "stripped" / "config.json"
    facts = json.loads(file.read_text())
    del facts["data"]
    file.write_text(json.dumps(facts))

    def one(config, source):
        config = config.copy()
        config.checkpoint = source
        try:
            return trained(config)
        except (ValueError, OSError) as error:
            return str(error)

    def loaded(*sources, line=""):
        kept = []
        work = lambda config: kept.extend(one(config, s) for s in sources)  # noqa: E731
        monkeypatch.setitem(table.TASKS, "sample", work)
        run("task=sample", "checkpoint=x", *line.split())
        return kept

    return loaded


def test_every_source_knows_its_data(loaded, tmp_path):
    here = tmp_path.name
    expected = {
        "x": ("x", "x"),
        "x/checkpoints/best.ckpt": ("x", "x"),
        "x/checkpoints/last.ckpt": ("x-last", "x/checkpoints/last"),
        "x/release": ("x", "x/release"),
        "release": (here, "release"),
        "release/model.safetensors": (here, "release"),
    }
    for source, found in zip(expected, loaded(*expected), strict=True):
        assert (found.name, found.folder.absolute()) == (
            expected[source][0],
            tmp_path / expected[source][1],
        )
        assert (found.model is None) == ("release" in source)
        assert not found.vae.training and found.vae.shape == (1, 8, 8)
        data = found.datamodule
        assert (data.binarize, data.val_size, data.seed) == ("stochastic", 100, 3)
        assert found.card["data"]["class"] == "Digits"
        assert found.sha256 == pretrained.digest(VAE.from_pretrained(source))


def test_what_was_fetched_has_a_folder_by_its_whole_name(loaded, monkeypatch):
    fetch = lambda name, revision: (Path.cwd() / "release", revision)[0]  # noqa: E731
    monkeypatch.setattr("vae_lab.storage.sources._from_hub", fetch)
    found = loaded("hf:a/model", "hf:b/model@v1")
    assert [f.name for f in found] == ["model", "model@v1"]
    assert [str(f.folder) for f in found] == [
        "runs/evaluate-hf-a-model",
        "runs/evaluate-hf-b-model-v1",
    ]


def test_a_run_has_its_estimator_and_the_zoo_a_place(loaded):
    run, zoo = loaded("x", ZOO)
    assert not run.model.training and run.model.estimator.temperature.value < 1
    weights = zip(run.vae.parameters(), VAE.from_pretrained("x").parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert zoo.model is None and zoo.card["data"]["class"] == "Digits"
    assert (str(zoo.folder), zoo.name) == (f"runs/evaluate-{ZOO}", ZOO)
    assert (zoo.datamodule.binarize, zoo.datamodule.seed) == ("threshold", 0)


def test_a_release_knows_the_relaxation_that_it_was_trained_with(loaded):
    run, release, zoo = loaded("x", "release", ZOO)
    for found in (release, zoo):
        assert isinstance(found.estimator, GumbelSoftmax) and found.estimator.relaxed
    exact = run.estimator.temperature.value
    assert exact < 1 and torch.isclose(release.estimator.temperature.value, exact)
    assert zoo.estimator.temperature.value == 0.5
    assert loaded("gaussian_vae-digits")[0].estimator is None


def test_what_is_typed_wins(loaded):
    for found in loaded("x", "release", line="data.eval_batch_size=7 data.seed=9 run_dir=y"):
        assert (found.datamodule.eval_batch_size, found.datamodule.seed) == (7, 9)
        assert str(found.folder) == "y"


def test_data_that_is_only_named_stays_what_it_was(loaded):
    """So that data.root can be typed."""
    found = loaded("x", "release", "stripped", line="data=digits data.eval_batch_size=7")
    assert [f.datamodule.binarize for f in found] == ["stochastic", "stochastic", "threshold"]
    assert {f.datamodule.eval_batch_size for f in found} == {7}


def test_mistakes(loaded):
    messages = loaded(None, "gumbel_vea-digits", "empty", "stripped")
    assert messages[0] == "task=sample needs a trained model: type checkpoint=runs/NAME"
    assert messages[1].endswith("did you mean gumbel_vae-digits")
    assert messages[2].startswith("no release at empty")
    assert "does not say which data it was trained on: type data=NAME, one of" in messages[3]
    assert not any("\n" in message for message in messages)


def test_data_of_another_shape(loaded):
    zoo, run = loaded(ZOO, "x", line="data=mnist")
    assert zoo == (
        f"{ZOO} is a model of data of shape (1, 8, 8), and MNIST has (1, 28, 28): "
        "leave out data=..., or choose the data that it was trained on"
    )
    assert "best.ckpt holds another model (data" in run


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("wandb:entity/project/model:v3", "model:v3"),
        ("hf:owner/name", "name"),
        ("runs/a/", "a"),
        ("runs/a/release/model.safetensors", "a"),
    ],
)
def test_names(source, name):
    assert name_of(source) == name


def test_no_two_of_several_have_one_name():
    assert names_of(["a/x", "y", "x/checkpoints/last.ckpt"]) == ["x", "y", "x-last"]
    assert names_of(["a/x", "b/x"]) == ["a-x", "b-x"]
    assert names_of(["/r/x", "../x", "hf:o/x", "r-x"]) == ["r-x", "x", "hf-o-x", "r-x-2"]


def test_several_checkpoints_are_one_setting():
    line = ["task=evaluate", "checkpoint=runs/a,gumbel_vae-digits,wandb:e/p/m:v0"]
    assert as_meant(line) == [line[0], "checkpoint='runs/a,gumbel_vae-digits,wandb:e/p/m:v0'"]
    for same in (["task=test", line[1]], ["-m", *line], ["task=evaluate", "checkpoint=[a,b]"]):
        assert as_meant(same) == same
    assert as_meant(as_meant(line)) == as_meant(line)


def test_a_path_may_have_a_comma(tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.chdir(tmp_path)
    config = SimpleNamespace(checkpoint="a,b", task="evaluate")
    assert checkpoints_of(config) == ["a", "b"]
    config.checkpoint = "a,b,a"
    assert checkpoints_of(config) == ["a", "b"]
    config.checkpoint = "a,b"
    (tmp_path / "a,b").mkdir()
    assert checkpoints_of(config) == ["a,b"]
