"""Is anything ever lost? Kills training with SIGKILL, again and again, and resumes it.

python benchmarks/kills.py [--kills 100] [--seed 0]

Every job is a `train.py ... resume=auto`, typed anew after every kill until it ends by itself. Half
of the kills come at random moments, the other half while a checkpoint is being written. A job
survives if it ends as the one that was never killed: every checkpoint, every logged metric and the
released weights are compared bit for bit. A job's process is forked after the imports, which take
longer than the job.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from same_runs import run_differences  # noqa: E402

import tasks.table  # noqa: E402, F401 - what train.py would import
import train  # noqa: E402

ALL = [
    *("experiment=smoke", "model.latents=3", "trainer=cpu"),
    *("trainer.max_epochs=3", "trainer.limit_train_batches=10", "callbacks.pictures=null"),
]
MLP = "network.hidden=[8]"
JOBS = [
    [MLP, "save.every_n_steps=1"],
    [MLP, "save.every_n_steps=4", "trainer.val_check_interval=3", "ema=0.9"],
    [MLP, "model=reinforce_vae", "model.baseline=learned", "trainer.accumulate_grad_batches=3"],
    [MLP, "model=gaussian_vae", "save.every_n_steps=2", "data.binarize=stochastic", "save.keep=1"],
    [MLP, "model=vq_vae", "model.categories=16", "model.revive=0.9", "save.every_n_steps=1"],
    [MLP, "estimator=rebar", "save.every_n_steps=1", "trainer.accumulate_grad_batches=2"],
    ["network=grid", "network.channels=[4]", "ema=0.9", "save.every_n_steps=1"],
]
MOST_KILLS_OF_A_JOB = 8  # then it may end


def start(line: list[str]) -> int:
    """A process that does what `python train.py LINE` does. Returns its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        sys.argv = ["train.py", *line]
        with Path(f"{line[0].partition('=')[2]}.log").open("a", buffering=1) as log:
            with redirect_stdout(log), redirect_stderr(log):
                train.main()
        code = 0
    finally:
        os._exit(code)


def kill(child: int, partial: Path, delay: float | None) -> bool:
    """Waits so long, or for a save to begin, and kills. False if the process ended before."""
    began = time.monotonic()
    while delay is None or time.monotonic() - began < delay:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if delay is None and partial.exists():
            break
        time.sleep(0 if delay is None else 0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def killed_job(
    job: list[str], name: str, seconds: float, most: int, chance: random.Random
) -> dict[str, int]:
    """Runs a job to its end against all kills. Returns how many there were, and of what kind."""
    partial = Path(name, "checkpoints", ".partial")
    counts = {"at random": 0, "while saving": 0}
    line = [f"run_dir={name}", "resume=auto", *ALL, *job]
    while sum(counts.values()) < most:
        partial.unlink(missing_ok=True)
        kind = chance.choice([*counts])
        delay = chance.uniform(0, seconds) if kind == "at random" else None
        if not kill(start(line), partial, delay):
            return counts
        counts[kind] += 1
    os.waitpid(start(line), 0)
    return counts


def whole_job(job: list[str], name: str) -> float:
    """Runs a job without a kill. Returns its seconds."""
    began = time.monotonic()
    _, status = os.waitpid(start([f"run_dir={name}", *ALL, *job]), 0)
    if status:
        raise RuntimeError(f"{' '.join(job)} fails by itself: {Path(f'{name}.log').read_text()}")
    return time.monotonic() - began


def lost(whole: str, name: str) -> list[str]:
    """What differs between two runs; of one that did not end, that it did not."""
    weights = [Path(run, "release", "model.safetensors") for run in (whole, name)]
    if not weights[1].is_file():
        return [Path(f"{name}.log").read_text().splitlines()[-1]]
    released = [] if weights[0].read_bytes() == weights[1].read_bytes() else ["release"]
    try:
        return run_differences(Path(whole), Path(name)) + released
    except FileNotFoundError as error:
        return [str(error)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(arguments.seed)
    os.chdir(folder := tempfile.mkdtemp())
    seconds: dict[int, float] = {}
    tried = survived = 0
    kinds = {"at random": 0, "while saving": 0}
    for number in itertools.count():
        if tried >= arguments.kills:
            break
        i, name = chance.randrange(len(JOBS)), f"killed{number}"
        if i not in seconds:
            seconds[i] = whole_job(JOBS[i], f"whole{i}")
        most = min(MOST_KILLS_OF_A_JOB, arguments.kills - tried)
        counts = killed_job(JOBS[i], name, seconds[i], most, chance)
        tried += sum(counts.values())
        kinds = {kind: kinds[kind] + count for kind, count in counts.items()}
        differs = lost(f"whole{i}", name)
        survived += 0 if differs else sum(counts.values())
        print(f"{' '.join(JOBS[i])}: {counts} {differs[:3] or 'same'}", flush=True)
    print(f"{survived} of {tried} kills survived ({kinds})")
    if survived < tried:
        raise SystemExit(f"what was lost is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
