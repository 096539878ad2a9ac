"""The threads in which torch computes on a CPU: how many they are, and how they wait.

Between two pieces of work a thread of OpenMP spins, and goes on at once, or sleeps, and takes some
50 us to wake. On a free machine spinning trains a small model twice as fast. Beside a busy process
it is up to ten times slower than sleeping: a thread that only waits keeps its core from the one
that it waits for. Neither changes a bit of what is computed.

GNU's OpenMP, which torch's wheels for Linux bring along, spins for milliseconds while its threads
are no more than the cores, and hardly at all while they are more (its manual, GOMP_SPINCOUNT). So
:func:`watched` looks at the load, and keeps idle threads beside torch's while others need cores.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PERIOD = 0.2  # seconds from one look at the load to the next
CALM = 5  # looks in a row without a crowd, before threads spin again
SPARE = 0.25, 0.02  # so much of a core, or of all cores, may be missing
GRAIN = 1 << 15  # numbers for each thread, below which torch takes fewer threads
TYPED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # with one of them in the environment, it decides
CGROUPS = Path("/sys/fs/cgroup")
MAPS = Path("/proc/self/maps")  # names the libraries that were loaded


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Load:
    """Measures how many cores are free for this process.

    Raises:
        OSError: this is not Linux, or it does not tell.
    """

    def __init__(self) -> None:
        if not hasattr(os, "sched_getaffinity"):
            raise OSError("the load is known on Linux only")
        self.cores = os.sched_getaffinity(0)
        self.quota = quota()
        self._hertz = os.sysconf("SC_CLK_TCK")
        self._before = self._now()

    def others(self) -> float:
        """Cores in use by other processes, on average since the last call."""
        now = self._now()
        seconds, used, own = (new - old for new, old in zip(now, self._before, strict=True))
        self._before = now
        return max(0.0, used - own) / max(seconds, 1e-9)

    def free(self, others: float) -> float:
        """Cores that such a load, and a container's quota, leave to this process."""
        return min(len(self.cores) - others, self.quota)

    def _now(self) -> tuple[float, float, float]:
        """The time, and the seconds that all processes and this one have computed."""
        with open("/proc/stat") as file:  # noqa: PTH123, Path.open takes twice as long
            rows = [line.split() for line in file if line.startswith("cpu")]
        used = sum(_busy(row) for row in rows if row[0][3:] and int(row[0][3:]) in self.cores)
        return time.monotonic(), used / self._hertz, time.process_time()


def _busy(row: list[str]) -> int:
    """Ticks of a line of /proc/stat that a core was in use, also by another virtual machine."""
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, row[1:9])
    return user + nice + system + interrupts + soft_interrupts + stolen


def quota(groups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that a container may use on average, infinite without a limit.

    Threads that spin would use up such a quota, and all of them would then be stopped.
    """
    least = math.inf
    for line in own.read_text().splitlines() if own.exists() else []:
        _, kind, path = line.split(":", 2)
        root = groups if not kind else groups / "cpu"
        if not kind or "cpu" in kind.split(","):
            place = root / path.lstrip("/")
            for folder in (place, *place.parents):
                if folder.is_relative_to(root):
                    least = min(least, _quota_of(folder))
    return least


def _quota_of(folder: Path) -> float:
    """The quota of one control group, from its file of version 2 or the two of version 1."""
    names = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for files in ([folder / name for name in pair] for pair in names):
        if all(file.is_file() for file in files):
            most, period = " ".join(file.read_text() for file in files).split()
            return math.inf if most in ("max", "-1") else int(most) / int(period)
    return math.inf


class _Watch(threading.Thread):
    """Lets torch's threads spin while there is a core for each, and sleep while there is none.

    Args:
        load: what is looked at.
        threads: that torch has; it tells the thread that computes only, so not this one.
    """

    def __init__(self, load: Load, threads: int) -> None:
        super().__init__(name="vae_lab.threads", daemon=True)
        self.load, self.threads = load, threads
        self.since = Load()  # the last run began
        self._crowded = deque([False], maxlen=CALM)  # the last looks
        self._ended = threading.Event()
        self._calm: threading.Event | None = None  # ends the idle threads

    def run(self) -> None:
        while not self._ended.wait(PERIOD):
            self._adapt()
        self._spin()

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _adapt(self) -> None:
        one, share = SPARE
        spare = max(one, share * len(self.load.cores))
        self._crowded.append(self.load.free(self.load.others()) + spare < self.threads)
        if self._crowded[-1]:
            self._sleep()
        elif not any(self._crowded):
            self._spin()

    def _sleep(self) -> None:
        threads, cores = self.threads, len(self.load.cores)
        if self._calm is None and threads > 1 and not any(name in os.environ for name in TYPED):
            self._calm = threading.Event()
            # Each brings as many as torch has but itself: together, more than there are cores.
            for _ in range((cores - threads) // (threads - 1) + 1):
                arguments = self._calm, threads
                threading.Thread(target=_idle, args=arguments, daemon=True).start()

    def _spin(self) -> None:
        if self._calm is not None:
            self._calm.set()
            self._calm = None


def _idle(ended: threading.Event, threads: int) -> None:
    """Takes threads of OpenMP, by one piece of work, and keeps them until it ends."""
    torch.zeros(GRAIN * threads).add_(1)
    ended.wait()


_watch: _Watch | None = None


@contextmanager
def watched() -> Iterator[None]:
    """Adapts how torch's threads wait to the load of the machine, where that is known.

    Afterwards there are as many threads as before.
    """
    global _watch
    before, outer = torch.get_num_threads(), _watch
    if outer is None:
        _watch = _begun(before)
    try:
        yield
    finally:
        if outer is None and _watch is not None:
            _watch.end()
            _watch = None
        torch.set_num_threads(before)


def _begun(threads: int) -> _Watch | None:
    """None where the load is not known, or where it is not GNU's OpenMP that runs the threads."""
    try:
        watch = _Watch(Load(), threads) if "libgomp" in MAPS.read_text() else None
    except OSError:
        return None
    if watch is not None:
        watch.start()
    return watch


def use(threads: int | None = None) -> None:
    """Sets the number of threads; None: it was set elsewhere. Called by the thread that computes,
    of which alone torch tells the number."""
    if threads is not None:
        torch.set_num_threads(threads)
    if _watch is not None:
        _watch.threads = torch.get_num_threads()


def others() -> float:
    """Cores that other processes have used since this was last asked, or :func:`watched` began; 0
    where that is not known."""
    return 0.0 if _watch is None else _watch.since.others()


def suited(others: float) -> int:
    """The number of threads beside such a load: torch's own, but for those that find no core.

    OMP_NUM_THREADS in the environment decides by itself.
    """
    threads = torch.get_num_threads()
    if _watch is None or "OMP_NUM_THREADS" in os.environ:
        return threads
    return max(1, min(threads, round(_watch.load.free(others))))
