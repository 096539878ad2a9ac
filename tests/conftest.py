import os
import signal
import sys

import pytest

os.environ["WANDB_MODE"] = "disabled"  # a test that wants an offline run asks for it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import torch

torch.set_num_threads(1)
# torch counts the devices at a process's first backward pass, and starts threads, which no fork
# survives, if there is one. The compiler registers one: so the first comes before any test's.
torch.ones(1, requires_grad=True).backward()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def environment():
    """Lightning leaves its port in the environment, where the next test's processes find it.

    W&B keeps there where its process is, for as long as that runs.
    """
    before = dict(os.environ)
    yield
    before.pop("WANDB_SERVICE", None)
    if "WANDB_SERVICE" in os.environ:
        before["WANDB_SERVICE"] = os.environ["WANDB_SERVICE"]
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def signals():
    """What answers Ctrl-C and SIGTERM is a process's, and stays where a test has left it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def known_classes():
    """A class that a test registers, also by running a page of the docs, is known to that test."""
    from vae_lab.description import CLASSES

    before = {kind: dict(classes) for kind, classes in CLASSES.items()}
    yield
    CLASSES.update(before)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """train.py in this process, in an empty folder."""
    import train
    from commandline.check import exit_on_mistake

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *exit_on_mistake([*arguments])])
        train.main()

    return run


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be written, by the names of their files."""
    from vae_lab import figures

    found = {}
    monkeypatch.setattr(figures, "write", lambda figure, path: found.update({path.stem: figure}))
    return found
