"""How many threads compute, and how they wait for each other."""

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from vae_lab import threads
from vae_lab.threads import CALM, Load, _busy, _Watch, quota, suited, watched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the load is known on Linux only")


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def watch(monkeypatch):
    """Looks at a machine with two cores only when it is told to."""
    for name in threads.TYPED:
        monkeypatch.delenv(name, raising=False)
    found = _Watch(Load(), 2)
    found.load.cores, found.load.quota = {0, 1}, math.inf
    yield found
    found._spin()
    assert eventually(lambda: not idle())


def look(watch, *loads):
    for load in loads:
        watch.load.others = lambda load=load: load
        watch._adapt()


def idle():
    return [t for t in threading.enumerate() if getattr(t, "_target", None) is threads._idle]


def system_threads():
    return {path.name for path in Path("/proc/self/task").iterdir()}


def eventually(true):
    return any(true() or time.sleep(0.01) for _ in range(500))


def test_threads_sleep_beside_a_crowd_and_spin_after_it(watch):
    torch.zeros(1 << 20).add_(1)  # torch's own threads
    before = system_threads()
    look(watch, 0.0)
    assert not idle()
    look(watch, 1.0)
    assert len(idle()) == 1
    # One of Python's, and one that it brings; threads of other tests may still be ending.
    assert eventually(lambda: len(system_threads() - before) == 2)
    look(watch, 1.0, *[0.0] * (CALM - 1))
    assert len(idle()) == 1 and len(system_threads() - before) == 2
    look(watch, 0.0)
    assert eventually(lambda: not idle() and not system_threads() - before)


def test_a_core_for_each_thread_is_no_crowd(watch):
    watch.load.cores = set(range(8))
    look(watch, 6.0)
    assert not idle()
    look(watch, 7.0)
    assert len(idle()) == 7  # with one thread each, beside the two: more than 8


@pytest.mark.parametrize("name", threads.TYPED)
def test_what_is_typed_decides(watch, monkeypatch, name):
    monkeypatch.setenv(name, "1000")
    look(watch, 1.0)
    assert not idle()


def test_a_single_thread_waits_for_nobody(watch):
    watch.threads = 1
    look(watch, 2.0)
    assert not idle()


def test_a_quota_is_a_crowd(watch):
    watch.load.cores, watch.load.quota = set(range(8)), 1.5
    look(watch, 0.0)
    assert idle()


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000", "a/cpu.max": "50000 100000", "a/b/x": ""}, "0::/a/b", 0.5),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "1"}, "4:cpu,x:/a", math.inf),
        ({"cpu/cpu.cfs_quota_us": "300", "cpu/cpu.cfs_period_us": "100"}, "4:x,cpu:/a", 3),
        ({}, "0::/", math.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, own, cores):
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "own").write_text(f"1:memory:/elsewhere\n{own}\n")
    assert quota(tmp_path / "groups", tmp_path / "own") == cores


def test_the_watch_knows_the_number_of_the_thread_that_computes():
    """Another one is told torch's default."""
    with watched():
        threads.use(1)
        time.sleep(0.3)
        assert threads._watch.threads == 1
        threads.use(2)
        assert threads._watch.threads == 2


def test_the_load_is_that_of_other_processes():
    load = Load()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        sum(range(1000))
    own = load._now()[2] - load._before[2]
    assert own > 0.05
    alone = load.others()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.6)
    beside = load.others()
    busy.kill()
    busy.wait()
    assert 0 <= alone <= os.cpu_count() and beside > 0.1


def test_a_core_that_waits_for_a_disk_is_free():
    row = "cpu0 1 20 300 4000 50000 600000 7000000 80000000 0 0".split()
    assert _busy(row) == 1 + 20 + 300 + 600000 + 7000000 + 80000000


@pytest.mark.parametrize(
    ("cores", "others", "number"),
    [(2, 0.0, 2), (2, 0.4, 2), (2, 1.0, 1), (2, 2.0, 1), (8, 7.0, 1), (8, 1.0, 2)],
)
def test_a_run_takes_the_cores_that_are_free(watch, monkeypatch, cores, others, number):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_watch", watch)
    watch.load.cores = set(range(cores))
    assert suited(others) == number
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert suited(others) == 2


def test_watching_ends_with_the_task():
    before = set(threading.enumerate())
    with watched():
        assert {t.name for t in set(threading.enumerate()) - before} == {"vae_lab.threads"}
    assert set(threading.enumerate()) == before and threads._watch is None
    assert threads.others() == 0


def test_a_watch_within_a_watch_is_the_same():
    with watched():
        outer = threads._watch
        with watched():
            assert threads._watch is outer
        assert threads._watch is outer
    assert threads._watch is None
