"""Training on two machines: two network namespaces, a cable between them, torchrun in each."""

import contextlib
import os
import subprocess
import sys
import time

import pytest
from same_runs import differences, metrics, state

import train
from vae_lab.storage.checkpoints import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    *(pytest.mark.filterwarnings(f"ignore:{message}") for message in train.QUIET),
]

LINE = [
    *("network=linear", "logger=csv", "callbacks.pictures=null", "model=reinforce_vae"),
    *("model.baseline=moving_average", "model.lr_decay=none", "data.batch_size=399"),
    *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
]
TWO_HOSTS = ["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts():
    """The names of two machines, 10.77.0.1 and 10.77.0.2."""
    names = [f"vae_lab_{os.getpid()}_{i}" for i in (1, 2)]
    with contextlib.ExitStack() as made:
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "del", name)
                made.callback(kill, name)
            ends = [["eth", "netns", name] for name in names]
            ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            for i, name in enumerate(names, 1):
                ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", "eth")
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", "eth", "up")
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            if "CI" in os.environ and os.geteuid() == 0:
                raise
            pytest.skip(f"needs `ip netns` and the right to use it: {error}")
        yield names


def start(hosts, folder, *arguments):
    """One torchrun on every machine, each with one process."""
    meeting = ["--nnodes=2", "--master-addr=10.77.0.1", "--master-port=29400"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meeting]
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *torchrun, f"--node-rank={i}", train.__file__]
            + [*LINE, *TWO_HOSTS, *arguments],
            cwd=folder,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "eth"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, name in enumerate(hosts)
    ]


def kill(name):
    for pid in ip("netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def cut(name):
    ip("-n", name, "link", "set", "eth", "down")


def trained(folder):
    """What the processes had in the end, whatever they were called."""
    states = [state(folder, name) for name in ("last", "best")]
    rows = [row for row in metrics(folder) if "train/elbo" in row]
    without = ("test/", "epoch")  # the test's, where it had no row of its own
    rows = [{k: v for k, v in row.items() if not k.startswith(without)} for row in rows]
    return rows, [{k: v for k, v in found.items() if k != "config"} for found in states]


@pytest.mark.parametrize("fault", [kill, cut])
def test_a_machine_is_lost(hosts, run, tmp_path, fault):
    """The other ends within its timeout, says so in a line, and both go on exactly."""
    endless = ["run_dir=x", "trainer.max_epochs=100000", "trainer.strategy.timeout.minutes=0.2"]
    first, second = start(hosts, tmp_path, *endless)
    last = tmp_path / "x" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    fault(hosts[1])
    said = first.communicate(timeout=300)[0].partition("torch/distributed/elastic")[0]
    kill(hosts[1])
    second.communicate(timeout=300)
    assert first.returncode != 0
    assert said.count("another process of this run was lost") == 1
    assert "to go on, type resume=x with" in said
    assert "Traceback" not in said

    ip("-n", hosts[1], "link", "set", "eth", "up")
    end = f"trainer.max_epochs={load_checkpoint(last)['epoch'] + 3}"
    for process in start(hosts, tmp_path, "resume=x", end):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    run(*LINE, "run_dir=whole", end, "trainer.strategy=ddp_fork", "trainer.devices=2")
    assert not list(differences(trained(tmp_path / "whole"), trained(tmp_path / "x")))
