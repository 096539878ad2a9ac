"""Reading when needed gives the batches that memory would give, and leaves nothing running."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from commandline.errors import explain
from vae_lab.data import TensorLoader
from vae_lab.data.stream import Rows, StreamLoader, Tensors

ROOT = Path(__file__).parents[1]


class OnDisk:
    """Stands in for a reader of files: image n has the label n and, in all pixels, 3 n."""

    shape = (1, 4, 4)

    def __init__(self, rows=tuple(range(70)), fails_at=None, error=None):
        self.rows, self.fails_at, self.error = rows, fails_at, error

    def __len__(self):
        return len(self.rows)

    def subset(self, rows):
        return OnDisk([self.rows[row] for row in rows], self.fails_at, self.error)

    def read(self, rows):
        labels = torch.tensor([self.rows[row] for row in rows], dtype=torch.int64)
        if self.fails_at in labels.tolist():
            self.error()
        images = (3 * labels).byte().view(-1, 1, 1, 1).expand(-1, *self.shape)
        return Rows(images.clone(), labels, {"a": "torn"} if 5 in labels.tolist() else {})


def unreadable():
    raise ValueError("7.png is torn")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


SETTINGS = {"seed": 1, "shuffle": True, "binarize": "stochastic"}


def in_memory(**settings):
    found = OnDisk().read(range(70))
    return TensorLoader(found.images, found.labels, 8, **SETTINGS | settings)


@pytest.fixture
def streamed():
    """Makes loaders, and ends what they leave running."""
    made = []

    def streamed(reader=None, num_workers=2, **settings):
        made.append(StreamLoader(reader or OnDisk(), 8, num_workers=num_workers, **settings))
        return made[-1]

    yield streamed
    for loader in made:
        loader.close()
    assert not multiprocessing.active_children()


def same(batches, others):
    return all(
        torch.equal(one.x, other.x) and torch.equal(one.y, other.y) and one.size == other.size
        for one, other in zip(batches, others, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_batches_are_those_of_memory(streamed, num_workers, world_size):
    """Order, noise, the ranks' parts, among them empty ones, and starts in mid-epoch."""
    for rank in range(world_size):
        settings = {"rank": rank, "world_size": world_size}
        memory = in_memory(**settings)
        loader = streamed(num_workers=num_workers, **SETTINGS, **settings)
        assert len(loader) == len(memory) == 9
        assert loader.state_dict() == memory.state_dict()
        for epoch, start in ((0, 0), (1, 0), (1, 4), (2, 8), (3, 9)):
            for one in (loader, memory):
                one.start_at(epoch, start)
            assert same(list(loader), list(memory))


@pytest.mark.parametrize("binarize", ["none", "threshold"])
def test_other_stages_and_binarisations(streamed, binarize):
    settings = {"stage": "val", "shuffle": False, "binarize": binarize}
    assert same(list(streamed(**settings)), list(in_memory(**settings)))


def test_torchs_generator_is_left_alone(streamed):
    state = torch.get_rng_state()
    list(streamed(**SETTINGS))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_processes_read_every_epoch_until_they_are_closed(streamed):
    loader = streamed()
    list(loader)
    first = {process.pid for process in multiprocessing.active_children()}
    list(loader)
    assert {process.pid for process in multiprocessing.active_children()} == first
    assert len(first) == min(2, len(os.sched_getaffinity(0)))
    loader.close()
    assert not multiprocessing.active_children()
    assert len(list(loader)) == 9  # and may be used again


def test_an_iteration_that_is_given_up_leaves_no_processes(streamed):
    batches = iter(streamed())
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()


def test_signals_to_the_runs_group_do_not_reach_the_processes(streamed):
    next(batches := iter(streamed()))
    found = multiprocessing.active_children()
    until = time.monotonic() + 30  # one that has only begun is still in the run's group
    while any(os.getpgid(process.pid) == os.getpgid(0) for process in found):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert found
    batches.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_readers_error_arrives_as_it_is(streamed, num_workers):
    with pytest.raises(ValueError, match="^7.png is torn$"):
        list(streamed(OnDisk(fails_at=40, error=unreadable), num_workers))


def test_files_that_others_stand_in_for_are_reported(streamed):
    found = []
    list(streamed(report=found.append))
    assert found == [{"a": "torn"}]


def test_a_lost_process_is_one_line(streamed):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["data=image_folder", "data.root=x"])
    with pytest.raises(RuntimeError) as caught:
        list(streamed(OnDisk(fails_at=40, error=killed)))
    line = explain(caught.value, config)
    assert line.startswith("a process that reads the data was lost (DataLoader worker")
    assert "type less than data.num_workers=4" in line


def test_a_process_may_be_spawned(streamed):
    loader = streamed(num_workers=1, **SETTINGS)
    loader._workers.multiprocessing_context = "spawn"
    assert same(list(loader), list(in_memory()))


def test_memory_is_a_reader_too():
    memory = in_memory()
    reader = Tensors(memory.images, memory.labels).subset(torch.tensor([5, 3, 9]))
    found = pickle.loads(pickle.dumps(reader)).read([2, 0])
    assert (found.labels.tolist(), len(reader), reader.shape) == ([9, 5], 3, (1, 4, 4))
    assert found.images.amax((1, 2, 3)).tolist() == [27, 15]


@pytest.mark.slow
def test_memory_stays_flat_over_a_folder_that_is_ten_times_as_large(tmp_path):
    script = Path(__file__).parent / "little_memory.py"
    command = [sys.executable, str(script), str(tmp_path)]
    # Or glibc keeps some of the freed batches, for later ones, and their number varies.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    decoded, limit, first, second, refused = result.stdout.split()[-5:]
    assert float(decoded) > 10 * float(limit)
    assert float(second) < float(first) + 0.2 * float(limit)
    assert refused == "refused"  # the same run with all pictures in memory
