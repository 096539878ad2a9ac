"""Every command and every example of the README and of the documentation is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commandline.check import check
from commandline.settings_table import tables

ROOT = Path(__file__).parent.parent
FOLDERS = ("commandline", "configs", "datamodules", "models", "tasks")  # of the checkout
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = (
    "index",
    "tutorial",
    "tables",
    "series",
    "labels",
)  # whose blocks are run as they stand
IN_TURN = ("tutorial", "tables", "series")  # a block needs what those before it have made
SMALL = [  # of every run: what keeps it short
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "logger=csv",
]
ELSEWHERE = {  # these are composed and checked only
    "submitit_slurm": "a cluster",
    "hydra.sweeper.n_trials": "tests/test_scale.py runs it",
    "trainer=gpu": "a GPU",
    "cuda_graphs": "a GPU",
    "s3://": "an object store",
    "task=explore": "tests/test_explorer_page.py opens it in a browser",
    "data=streaming": "tests/test_streaming.py makes its shards",
    "precision=bf16-mixed": "a GPU, or patience",
    "trainer.devices=8": "eight GPUs",
    "data.root=MNIST": "its files",
    "trainer=fsdp": "tests/test_train.py runs it",
}


def commands():
    """(page, arguments) of every `python train.py ...`, on a line of its own or within one."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        own = re.findall(r"^(?: {4})?python train\.py(.*)$", text, re.M)
        within = re.findall(r"`python train\.py([^`]*)`", text)
        made_up = "GROUP|squares|plain_reinforce|bit_vae|latent=positive|peaks|package.Class|FOLDER"
        for line in [line for line in own + within if not re.search(made_up, line)]:
            arguments = shlex.split(line.partition("||")[0], comments=True)
            if arguments:
                yield page.name, tuple(arguments)


def named(commands):
    commands = list(dict.fromkeys(commands))
    return [pytest.param(a, id=f"{page}: {' '.join(a)[:60]}") for page, a in commands]


def test_there_are_commands_to_run():
    assert len(set(commands())) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    if page.stem in IN_TURN or page.stem == "labels":
        return  # as a notebook, below
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(block, scope)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with what the commands' capitals stand for."""
    folder = tmp_path_factory.mktemp("docs")
    smoke = ["experiment=smoke", "report=false"]
    for name in ("NAME", "a", "b", "A", "B"):
        _train(folder, *smoke, f"run_dir=runs/{name}")
    (folder / "PICTURES").mkdir()
    for number in range(240):
        Image.new("RGB", (20, 16), (number, 255 - number, 90)).save(
            folder / "PICTURES" / f"{number}.png"
        )
    _write_tables(folder)
    # What task=encode writes on a page and task=decode reads: the two may run in two processes.
    _train(
        folder, "task=encode", "checkpoint=runs/NAME", "encode.what=codes", "encode.out=codes.npy"
    )
    shutil.copy(folder / "codes.npy", folder / "z.npy")
    return folder


def _write_tables(folder):
    numbers = np.random.default_rng(0).lognormal(size=(240, 3))
    np.save(folder / "x.npy", numbers)
    cities = ["Rome", "Oslo", "Lima"] * 80
    rows = [
        f"{a},{b},{i},{city}"
        for i, ((a, b, _), city) in enumerate(zip(numbers, cities, strict=True))
    ]
    for name, last in (("people.csv", "city"), ("FILE.csv", "city"), ("iris.csv", "species")):
        (folder / name).write_text("\n".join([f"age,size,id,{last}", *rows]) + "\n")


def _train(folder, *arguments):
    subprocess.run([sys.executable, ROOT / "train.py", *arguments], cwd=folder, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", named(c for c in commands() if Path(c[0]).stem not in IN_TURN)
)
def test_a_command_runs(arguments, places, run, monkeypatch, tmp_path):
    monkeypatch.chdir(places)
    if "--cfg" in arguments or "--help" in arguments:
        _train(places, *arguments)
    elif any(sign in " ".join(arguments) for sign in ELSEWHERE):
        assert check([*arguments])
    elif "trainer=ddp" in arguments:  # starts itself again
        _train(places, *_short(arguments, tmp_path))
    else:
        run(*_short(arguments, tmp_path))


def _short(arguments, tmp_path):
    """The same command on little data; what it names stays, what it would write goes elsewhere."""
    typed = {a.partition("=")[0] for a in arguments}
    task = next((a for a in arguments if a.startswith("task=")), "task=fit")
    kept = [a.replace("SOURCE", "gumbel_vae-digits") for a in arguments]
    if task not in ("task=fit", "task=prior", "task=compare", "task=shards"):
        extra = ["evaluate.samples=20", "evaluate.ais_images=4", "evaluate.ais_steps=5"]
        return [*kept, *(extra if task == "task=evaluate" else [])]
    kept = [a for a in kept if not a.startswith(("trainer.max_epochs", "run_dir"))]
    if not {"resume", "checkpoint"} & typed:
        kept.append(f"run_dir={tmp_path}/run")
    small = [s for s in SMALL if s.partition("=")[0] not in {a.partition("=")[0] for a in kept}]
    if task == "task=compare":
        small += ["compare.repeats=3", "compare.reference_repeats=3", "compare.images=4"]
        kept = [a for a in kept if not a.startswith(("compare.train_epochs", "compare.seeds"))]
    if "init.encoder=gumbel_vae-digits" in kept:
        small.append("network.hidden=[256,128]")  # the zoo's
    return kept + (["trainer.max_epochs=3"] if resumes(kept) else small)


def resumes(arguments):
    """An exact one takes no other settings than the run's."""
    return any(a.startswith("resume=runs/") for a in arguments)


@pytest.mark.slow
def test_the_parts_that_a_page_adds_train(tmp_path):
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "train.py", tmp_path)
    page = (ROOT / "docs" / "extending.md").read_text()
    block = r"`([\w/]+\.(?:py|yaml))`.*:\n\n```(?:python|yaml)\n((?s:.*?))```"
    added = [(name, text) for name, text in re.findall(block, page) if name != "train.py"]
    assert len(added) == 8
    for name, content in added:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    typed = (
        "model=bit_vae",
        "model=gaussian_vae latent=positive",
        "model=gaussian_vae prior=peaks",
    )
    for number, chosen in enumerate(typed):
        line = ["data=squares", *chosen.split(), f"run_dir=run{number}", "report=false", *SMALL]
        subprocess.run([sys.executable, "train.py", *line], cwd=tmp_path, check=True)
        assert (tmp_path / f"run{number}" / "release" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", NOTEBOOKS)
def test_a_notebook_runs(page, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    for name in ("train.py", *FOLDERS, "vae_lab"):
        (tmp_path / name).symlink_to(ROOT / name)
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{page}.ipynb", as_version=4)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()


def test_the_notebooks_are_those_of_the_pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from notebooks import notebook

    for page in NOTEBOOKS:
        stored = (ROOT / "docs" / "notebooks" / f"{page}.ipynb").read_text()
        assert stored == notebook(page), "type python docs/notebooks.py"


def test_every_setting_is_explained_or_speaks_for_itself():
    text = tables()
    for setting in ("model.temperature.start", "data.binarize", "save.every_minutes", "report"):
        row = re.search(rf"^\| `{re.escape(setting)}` \|.*$", text, re.M).group()
        assert len(row.split("|")[3].strip()) > 5, row
    assert "`trainer.max_epochs` | `100`" in text and "### `estimator=rebar`" in text
    assert text in (ROOT / "docs" / "settings.md").read_text(), "type make docs"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", ROOT / "docs", tmp_path]
    subprocess.run(command, check=True)
    assert "Gumbel" in (tmp_path / "reference.html").read_text()
