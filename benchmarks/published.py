"""Trains what papers report, and measures it: the rows of benchmarks/published.csv.

python benchmarks/published.py [TABLE ...] [--rows ROW ...] [--seeds 0 1 2] [--share 0.1 | --quick]
    [--root mnist=FOLDER] [--jobs 2]

A table is a folder of configs/experiment/, a row a file in it, which `python train.py
experiment=TABLE/ROW` trains as well; benchmarks/published.yaml says what the papers report. Each
run takes one core. One that is interrupted goes on where it was, and so does one that was trained
for a smaller share before. A row that is in the CSV is not run again.
"""

import argparse
import csv
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from commandline.likeness import did_you_mean  # noqa: E402
from tasks import build  # noqa: E402
from vae_lab import VAE  # noqa: E402
from vae_lab.data import Loader  # noqa: E402
from vae_lab.storage.checkpoints import CHECKPOINTS, read_saved  # noqa: E402

HERE = ROOT / "benchmarks"
RUNS = ROOT / "runs" / "published"
QUIET = ["logger=csv", "report=false", "callbacks.pictures=null"]
QUIET += ["trainer.enable_progress_bar=false"]
QUANTITIES = ("train_elbo", "test_elbo")
COLUMNS = ("table", "row", "seed", "epochs", "steps", "seconds")
COLUMNS += tuple(name for quantity in QUANTITIES for name in (quantity, f"{quantity}_error"))


@dataclass(frozen=True)
class Case:
    """A run, by what tells it from the others in the CSV."""

    table: str
    row: str
    seed: int
    epochs: int

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(str(value) for value in asdict(self).values())

    @property
    def folder(self) -> Path:
        """The same for all epochs, so that more of them go on with fewer."""
        return RUNS / self.table / f"{self.row}-{self.seed}"


def published() -> dict[str, Any]:
    """The tables, as the papers have them."""
    return yaml.safe_load((HERE / "published.yaml").read_text())


def settings(table: str, row: str) -> Any:
    """The config that a row is trained with."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", [f"experiment={table}/{row}"])


def cases(tables: dict[str, Any], options: argparse.Namespace) -> Iterator[Case]:
    for seed in options.seeds:
        for table, about in tables.items():
            share = about["quick"] if options.quick else options.share
            for row in options.rows or about["rows"]:
                if row in about["rows"]:
                    epochs = settings(table, row).trainer.max_epochs
                    yield Case(table, row, seed, max(round(share * epochs), 1))


def line_of(case: Case, roots: dict[str, str]) -> list[str]:
    """What trains a run to its end, whatever of it there is already."""
    line = [f"experiment={case.table}/{case.row}", f"seed={case.seed}", "resume=auto", "threads=1"]
    line += [f"trainer.max_epochs={case.epochs}", f"run_dir={case.folder}", *QUIET]
    data = settings(case.table, case.row).data._target_.split(".")[1]
    return line + ([f"data.root={roots[data]}"] if data in roots else [])


def train(case: Case, line: list[str]) -> float:
    """Trains a run; the seconds it has taken in all."""
    clock = case.folder.with_suffix(".seconds")
    before = float(clock.read_text()) if clock.exists() else 0.0
    began = time.perf_counter()
    try:
        train_py(line)
    finally:
        seconds = before + time.perf_counter() - began
        if case.folder.exists():
            clock.write_text(f"{seconds:.0f}\n")
    return seconds


def train_py(line: list[str]) -> None:
    """The command in a process of its own, of which only what is wrong is shown."""
    command = [sys.executable, "train.py", *line]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def measure(folder: Path, quantities: list[str]) -> dict[str, Any]:
    """The newest weights of a run: papers report the last ones, and not the best in validation."""
    last = folder / CHECKPOINTS / "last.ckpt"
    vae, found = VAE.from_pretrained(last), {"steps": read_saved(last).content["global_step"]}
    data = build.make(OmegaConf.load(folder / "config.yaml").data)
    data.prepare_data()
    parts = data.divided()
    for quantity in quantities:
        split = quantity.partition("_")[0]
        mean, error = elbo(vae, data.loader_of(parts[split]))
        found |= {quantity: f"{mean:.3f}", f"{quantity}_error": f"{error:.3f}"}
    return found


def elbo(vae: VAE, batches: Loader) -> tuple[float, float]:
    """The mean over all images, with one draw of z for each, and its standard error."""
    torch.manual_seed(0)
    each = torch.cat([vae.elbo(x).elbo for x, *_ in batches]).double()
    return each.mean().item(), each.std().item() / math.sqrt(len(each))


def append(row: dict[str, Any], path: Path) -> None:
    """One line; other processes may be adding theirs."""
    new = not path.exists()
    with path.open("a", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def known(path: Path) -> set[tuple[str, ...]]:
    """The keys of the rows that a CSV has."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(r["table"], r["row"], r["seed"], r["epochs"]) for r in csv.DictReader(file)}


def run(left: list[Case], tables: dict[str, Any], options: argparse.Namespace) -> None:
    roots = dict(pair.split("=", 1) for pair in options.root)
    lines = [line_of(case, roots) for case in left]  # Hydra is not for threads
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            pool.submit(train, case, line): case for case, line in zip(left, lines, strict=True)
        }
        try:
            for future in as_completed(futures):
                case, seconds = futures[future], round(future.result())
                found = measure(case.folder, tables[case.table]["measured"])
                append(asdict(case) | {"seconds": seconds} | found, options.out)
                print(*case.key, *found.values(), f"{seconds} s", flush=True)
        except BaseException:  # those that are running stop by themselves, or come to their end
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    every = published()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=f"default: all of {', '.join(every)}")
    parser.add_argument("--rows", nargs="+", help="some of the rows; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the paper's epochs")
    parser.add_argument("--quick", action="store_true", help="a small share, an hour for all")
    parser.add_argument("--root", nargs="+", default=[], help="of data, as mnist=FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument("--out", type=Path, default=HERE / "published.csv")
    options = parser.parse_args(arguments)
    options.tables = options.tables or [*every]
    for name in options.tables:
        if name not in every:
            hint = did_you_mean(name, every)
            parser.error(f"unknown table {name}{hint}; known: {', '.join(every)}")
    rows = [row for name in options.tables for row in every[name]["rows"]]
    for name in options.rows or []:
        if name not in rows:
            parser.error(f"unknown row {name}{did_you_mean(name, rows)}; known: {', '.join(rows)}")
    if not 0 < options.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, got {options.share:g}")
    if wrong := [pair for pair in options.root if "=" not in pair]:
        parser.error(f"--root is DATA=FOLDER, as in mnist=FOLDER, got {wrong[0]}")
    return options


def main() -> None:
    options = parsed()
    tables = {name: published()[name] for name in options.tables}
    there = known(options.out)
    left = [case for case in cases(tables, options) if case.key not in there]
    try:
        run(left, tables, options)
    except subprocess.CalledProcessError as error:
        experiment = next(a for a in error.cmd if a.startswith("experiment="))
        sys.exit(f"{experiment} ended with {error.returncode}; the same command goes on with it")


if __name__ == "__main__":
    main()
