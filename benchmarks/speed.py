"""How fast train.py is, beside loops written by hand, other frameworks, and its own other settings.

python benchmarks/speed.py [--rounds 3] [--parts quiet busy] [--cases mlp-128] [--out FILE.csv]

Everything that trains does so in a process of its own, in the environment that this one was started
in, in turn (A B A B): medians over the rounds. `busy` is the same machine beside one process that
computes without end, which this program starts and ends. What is written is a ratio of speeds.
`pip install pythae` adds pythae to those beside.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contenders import CASES  # noqa: E402
from benchmarks.turns import medians, write  # noqa: E402

CONTENDER = ROOT / "benchmarks" / "contenders.py"
EVERY = "train.py, every core"
ASLEEP = f"{EVERY}, asleep"  # between two pieces of work, at once
SPINNING = f"{EVERY}, spinning"
ENVIRONMENT = {ASLEEP: {"OMP_WAIT_POLICY": "PASSIVE"}, SPINNING: {"GOMP_SPINCOUNT": "300000"}}
SETTINGS = ("train.py, one thread", EVERY, ASLEEP, SPINNING)
BEST = "the best setting"

TARGETS = {  # (of what, beside what): least ratio of the speeds
    "quiet": {
        ("train.py", "by hand"): {
            "mlp-128": 0.9,
            "mlp-512": 0.95,
            "conv-128": 0.97,
            "conv-512": 0.97,
            "grid-16": 0.97,
        },
        ("train.py, averaged and flipped", "train.py"): {"grid-16": None},
        ("train.py, compiled", "by hand, compiled"): {
            "mlp-128": 0.9,
            "mlp-512": 0.95,
            "conv-128": 0.97,
        },
        ("train.py", "pythae"): {"mlp-128": 1.55},
        ("train.py", "Lightning and a DataLoader"): {"mlp-128": 2.5},
        ("train.py", "by hand, Adam not fused"): {"mlp-128": None},
        ("train.py", "by hand, our layers"): {"mlp-128": None, "conv-128": None},
        ("train.py", "train.py, one thread"): {"mlp-128": 1, "conv-128": 1},
    },
    "busy": {
        ("train.py", "by hand"): {"mlp-128": None, "conv-128": None},
        ("train.py", "train.py, one thread"): {"mlp-128": 1, "conv-128": 1},
        ("train.py", BEST): {"mlp-128": 0.85, "conv-128": 0.85},
    },
    "extras": {("train.py, everything on", "train.py, all off"): {"mlp-128": 0.97}},
    "likelihood": {
        ("log_likelihood", "pythae's get_nll"): {"mlp": 4},
        ("log_likelihood", "a loop over the images"): {"mlp": None},
    },
}
EPOCH = ("--steps", "422", "--seconds", "12")  # whole epochs, with their validation
SLOW = {"grid-16": ("--steps", "5", "--seconds", "6")}


def seconds_of(name: str, case: str, *options: str) -> float:
    """Seconds of a step of a contender."""
    contender = EVERY if name in ENVIRONMENT else name
    command = [sys.executable, str(CONTENDER), contender, case, *options]
    environment = os.environ | ENVIRONMENT.get(name, {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("STEP")]
    if not found:
        raise RuntimeError(f"{name} on {case} ended without a measurement:\n{done.stderr[-2000:]}")
    return float(found[0])


def race(names: list[str], case: str, rounds: int, *options: str) -> dict[str, float]:
    """Median seconds of a step, of each."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            taken[name].append(seconds_of(name, case, *options))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def contenders(part: str, case: str) -> list[str]:
    """Those whose speeds are compared in that case."""
    pairs = [pair for pair, cases in TARGETS[part].items() if case in cases]
    names = [name for pair in pairs for name in pair if name != BEST]
    names += SETTINGS if any(BEST in pair for pair in pairs) else ()
    return [n for n in dict.fromkeys(names) if n != "pythae" or find_spec("pythae")]


def training(part: str, case: str, rounds: int) -> dict[str, float]:
    options = EPOCH if part == "extras" else SLOW.get(case, ())
    seconds = race(contenders(part, case), case, rounds, *options)
    return seconds | {BEST: min(v for k, v in seconds.items() if k.startswith("train.py"))}


@contextmanager
def beside_a_busy_process() -> Iterator[None]:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def likelihood(rounds: int) -> dict[str, float]:
    """Seconds of the bound with 200 samples on log p(x) of 100 images, of one model."""
    import torch

    from benchmarks.contenders import LATENTS, SHAPE, pythae_model, recipe
    from vae_lab import VAE
    from vae_lab.latents import Gaussian
    from vae_lab.likelihoods import Bernoulli

    vae = VAE(SHAPE, recipe("mlp"), Gaussian(LATENTS), Bernoulli()).eval()
    x = torch.rand(100, *SHAPE).round()

    @torch.no_grad()
    def loop() -> None:
        for image in x.split(1):
            q, prior = vae.encode(image), vae.latent.prior()
            z = q.sample((200,))
            log_w = vae.log_px_z(image, z) + prior.log_prob(z) - q.log_prob(z)
            log_w.logsumexp(0)

    runs = {"log_likelihood": lambda: vae.log_likelihood(x, 200), "a loop over the images": loop}
    if find_spec("pythae"):
        peer = pythae_model("mlp")
        # It estimates one image after the other, in batches of samples.
        runs["pythae's get_nll"] = lambda: peer.get_nll(x, n_samples=200, batch_size=200)
    return medians(runs, rounds)


FIRST_STEP = """
import os, runpy, sys
sys.path.insert(0, {root!r})
from models.base import VAEModule
VAEModule.on_train_batch_end = lambda *_: os._exit(0)
sys.argv = ["train.py", "logger=csv", "run_dir={folder}/run"]
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


MISTAKES = ("data=image_folder data.root=nowhere", "model.latents=-1", "task=evalute")


def startup(rounds: int) -> dict[str, float]:
    """Seconds of whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        first_step = FIRST_STEP.format(root=str(ROOT), folder=folder)
        commands = {
            "import torch": ["-c", "import torch"],
            "import vae_lab": ["-c", "import torch, vae_lab"],
            "import torch and Lightning": ["-c", "import torch, pytorch_lightning"],
            "train.py to the first step": ["-c", first_step],
        }
        commands |= {line: ["train.py", *line.split()] for line in MISTAKES}
        runs = {
            name: partial(_run, command, 2 if name in MISTAKES else 0)
            for name, command in commands.items()
        }
        return medians(runs, rounds, warm=1)


def _run(arguments: list[str], code: int) -> None:
    """A whole process, which is to end with this code."""
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode != code:
        raise RuntimeError(f"{arguments} ended with {ended.returncode}: {ended.stderr[-2000:]}")


PEAK = """
import re, runpy, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import tasks.table, hydra, pytorch_lightning, wandb
from models.base import VAEModule
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before, start = peak(), VAEModule.on_validation_start
def report(self):
    print("PEAK", peak() - before, sum(p.numel() for p in self.parameters()))
    start(self)
VAEModule.on_validation_start = report
sys.argv = ["train.py", "model=gaussian_vae", "data=fashion_mnist", "logger=csv"]
sys.argv += ["trainer.max_epochs=1", "run_dir={folder}/run", "data.batch_size=512"]
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def memory() -> tuple[float, float]:
    """MiB that training takes at its peak, and that of the data, 4 times the weights, and the
    activations: the values of every layer of a batch, once forward and once backward."""
    with tempfile.TemporaryDirectory() as folder:
        code = PEAK.format(root=str(ROOT), folder=folder)
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    _, kib, parameters = next(line for line in out.splitlines() if "PEAK" in line).split()
    layers = 784 + 512 + 256 + 2 * 20 + 20 + 256 + 512 + 784
    budget = 70_000 * 784 + 4 * 4 * int(parameters) + 2 * 4 * 512 * layers
    return int(kib) / 2**10, budget / 2**20


def compared(part: str, case: str, seconds: dict[str, float]) -> Iterator[dict[str, Any]]:
    for (what, beside), targets in TARGETS[part].items():
        if what in seconds and beside in seconds and case in targets:
            speed = round(seconds[beside] / seconds[what], 3)
            row = {"machine": "busy" if part == "busy" else "quiet", "case": case}
            yield row | {"what": what, "beside": beside, "speed": speed, "target": targets[case]}


def started(rounds: int) -> Iterator[dict[str, Any]]:
    """The time until the first step, and until the answer to a mistake."""
    seconds = startup(rounds)
    print(f"import vae_lab: {seconds['import vae_lab'] - seconds['import torch']:.2f} s more")
    for line in MISTAKES:
        print(f"train.py {line}: answered in {seconds[line]:.2f} s (target 1)")
    row = {"machine": "quiet", "case": "digits", "what": "train.py to its first step"}
    ratio = seconds["import torch and Lightning"] / seconds["train.py to the first step"]
    yield row | {"beside": "bare imports", "speed": round(ratio, 3), "target": 0.667}


def in_memory() -> Iterator[dict[str, Any]]:
    peak, budget = memory()
    print(f"{peak:.0f} MiB at the peak, {budget:.0f} MiB in the budget")
    row = {"machine": "quiet", "case": "mlp-512", "what": "memory of the budget"}
    yield row | {"beside": "at the peak", "speed": round(budget / peak, 3), "target": 1}


def trained(part: str, cases: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    for case in cases:
        if any(case in targets for targets in TARGETS[part].values()):
            seconds = training(part, case, rounds)
            for name, each in seconds.items():
                print(f"  {part}, {case}: {name}, {CASES[case][1] / each:,.0f} images/s")
            yield from compared(part, case, seconds)


def measured(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of the parts that were asked for."""
    if "quiet" in asked.parts:
        yield from trained("quiet", asked.cases, asked.rounds)
    if "busy" in asked.parts:
        with beside_a_busy_process():
            yield from trained("busy", asked.cases, asked.rounds)
    if "extras" in asked.parts:
        yield from trained("extras", asked.cases, asked.rounds)
    if "likelihood" in asked.parts:
        yield from compared("likelihood", "mlp", likelihood(5 * asked.rounds))
    if "startup" in asked.parts:
        yield from started(asked.rounds)
    if "memory" in asked.parts:
        yield from in_memory()


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A dot for every comparison, and a line where it is to reach."""
    from matplotlib.ticker import NullFormatter

    from vae_lab import figures

    figure, (axes,) = figures.panels(1)
    figure.set_size_inches(8, 0.3 * len(rows) + 1)
    for place, row in enumerate(reversed(rows)):
        axes.plot(row["speed"], place, "o", color=figures.COLOURS[0])
        if row["target"]:
            ends = [place - 0.45, place + 0.45]
            axes.plot([row["target"]] * 2, ends, color=figures.COLOURS[1], linewidth=2)
    names = [f"{r['machine']}, {r['case']}: {r['what']} / {r['beside']}" for r in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xscale="log", xlabel="speed, as a ratio; the target in orange")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks := [0.5, 1, 2, 4], map(str, ticks))
    axes.axvline(1, color="grey", lw=0.8, zorder=0)
    figures.write(figure, path)


PARTS = ("quiet", "busy", "extras", "likelihood", "startup", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "speed.csv")
    asked = parser.parse_args()
    if find_spec("pythae") is None:
        print("without pythae, which is not installed")
    rows = []
    for row in measured(asked):
        rows.append(row)
        target = f"(target {row['target']})" if row["target"] else ""
        names = f"{row['what']} / {row['beside']}"
        print(f"{row['machine']:6}{row['case']:9} {names}: {row['speed']} {target}", flush=True)
    write(rows, asked.out)
    draw(rows, asked.out.with_name("images") / f"{asked.out.stem}.png")


if __name__ == "__main__":
    main()
