"""Trains what papers report, and measures it: the rows of benchmarks/published.csv.

python benchmarks/published.py [TABLE ...] [--rows ROW ...] [--seeds 0 1 2] [--share 0.1 | --quick]
    [--root mnist=FOLDER] [--jobs 2]
python benchmarks/published.py docs    # writes docs/published.md

A table is a folder of configs/experiment/, a row a file in it, which `python train.py
experiment=TABLE/ROW` trains as well; benchmarks/published.yaml says what the papers report. Each
run takes one core. One that is interrupted goes on where it was, and so does one that was trained
for a smaller share before. A row that is in the CSV is not run again. Rows of data that nobody
brings along are run where --root says their folder.
"""

import argparse
import csv
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import published_page  # noqa: E402
from benchmarks.turns import write  # noqa: E402
from commandline.likeness import did_you_mean  # noqa: E402
from datamodules.base import DataModule  # noqa: E402
from tasks import build  # noqa: E402
from vae_lab import VAE  # noqa: E402
from vae_lab.evaluation.evidence import importance_weighted  # noqa: E402
from vae_lab.lightning.progress import ended_its_epoch  # noqa: E402
from vae_lab.storage.checkpoints import CHECKPOINTS, read_saved  # noqa: E402

HERE = ROOT / "benchmarks"
RUNS = ROOT / "runs" / "published"
QUIET = ["logger=csv", "report=false", "callbacks.pictures=null"]
QUIET += ["trainer.enable_progress_bar=false"]
QUANTITIES = ("train_elbo", "test_elbo", "test_bound")
BATCH, FEW = 1000, 20  # images at a time: with one draw of z, and with many
KEY = ("table", "row", "seed", "epochs")
COLUMNS = (*KEY, "steps", "seconds")
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


def runnable(about: dict[str, Any], roots: dict[str, str]) -> list[str]:
    """The rows of a table that can be run, with the data whose folders are given."""
    return [name for name, row in about["rows"].items() if why_not(row, roots) is None]


def why_not(row: dict[str, Any], roots: dict[str, str]) -> str | None:
    """Why a row cannot be run; None if it can."""
    absent = "needs" in row and row["needs"] not in roots
    return f"it needs --root {row['needs']}=FOLDER" if absent else None


def settings(table: str, row: str) -> Any:
    """The config that a row is trained with."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", [f"experiment={table}/{row}"])


def cases(tables: dict[str, Any], options: argparse.Namespace) -> Iterator[Case]:
    for seed in options.seeds:
        for table, about in tables.items():
            epochs = shortened(about, about["quick"] if options.quick else options.share)
            for row in runnable(about, options.root):
                if row in (options.rows or about["rows"]):
                    yield Case(table, row, seed, epochs)


def shortened(about: dict[str, Any], share: float) -> int:
    """So many epochs are this share of a whole run; where it has stages, whole ones."""
    epochs = max(round(share * about["epochs"]), 1)
    return max((end for end in about.get("stages", []) if end <= epochs), default=epochs)


def line_of(case: Case, row: dict[str, Any], roots: dict[str, str]) -> list[str]:
    """What trains a run to its end, whatever of it there is already."""
    line = [f"experiment={case.table}/{case.row}", f"seed={case.seed}", "resume=auto", "threads=1"]
    line += [f"trainer.max_epochs={case.epochs}", f"run_dir={case.folder}", *QUIET]
    data = settings(case.table, case.row).data
    root = roots.get(row.get("needs", data._target_.split(".")[1]))
    if root is None:
        return line
    if "root" in data:
        return [*line, f"data.root={root}"]
    return line + [f"data.{part}={root}/{part}.npy" for part in ("train", "val", "test")]


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


def measure(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """A run by its last weights, as papers report them, or by the best in validation."""
    last = folder / CHECKPOINTS / "last.ckpt"
    vae = VAE.from_pretrained(last.with_stem(about.get("weights", "last")))
    found = {"steps": read_saved(last).content["global_step"]}
    data = build.make(OmegaConf.load(folder / "config.yaml").data)
    data.prepare_data()
    for quantity in about["measured"]:
        split, _, name = quantity.partition("_")
        x = images(data, split)
        each = elbo(vae, x)
        mean, error = each.mean().item(), each.std().item() / math.sqrt(len(each))
        if name == "bound":
            mean, error = bound(each, vae, x, **about[name])
        found |= {quantity: f"{mean:.3f}", f"{quantity}_error": f"{error:.3f}"}
    return found


def images(data: DataModule, split: str) -> Tensor:
    """All of a split, as a model sees them."""
    with closing(data.loader_of(data.divided()[split])) as batches:
        return torch.cat([x for x, *_ in batches])


@torch.no_grad()
def elbo(vae: VAE, x: Tensor) -> Tensor:
    """Of each image, with one draw of z."""
    torch.manual_seed(0)
    return torch.cat([vae.elbo(part).elbo for part in x.split(BATCH)]).double()


def bound(elbo: Tensor, vae: VAE, x: Tensor, samples: int, images: int) -> tuple[float, float]:
    """The importance-weighted bound: the mean over all images, and its standard error.

    Images differ by tens of nats in their ELBO, but by few in how much higher the bound is. This is
    measured of the first of them; with the ELBO of all of them it gives the bound of all, for a
    part of the work.
    """
    torch.manual_seed(0)
    parts = x[:images].split(FEW)
    each = torch.cat([importance_weighted(vae, part, samples).bound for part in parts]).double()
    gain = each - elbo[: len(each)]
    (_, shared), (_, own) = torch.stack([elbo[: len(each)], gain]).cov()
    variance = (elbo.var() + 2 * shared) / len(elbo) + own / len(gain)
    return (elbo.mean() + gain.mean()).item(), variance.sqrt().item()


def append(row: dict[str, Any], path: Path) -> None:
    """One line; other processes may be adding theirs."""
    lines = published_page.read(path)
    if not lines or {*lines[0]} != {*COLUMNS}:  # of an older version, which had fewer columns
        write([{name: line.get(name, "") for name in COLUMNS} for line in [*lines, row]], path)
        return
    with path.open("a", newline="") as out:
        csv.DictWriter(out, COLUMNS, lineterminator="\n").writerow(row)


def known(path: Path) -> set[tuple[str, ...]]:
    """The keys of the rows that a CSV has."""
    return {tuple(line[name] for name in KEY) for line in published_page.read(path)}


def remaining(tables: dict[str, Any], options: argparse.Namespace) -> list[Case]:
    """The cases that the CSV has not, but for those whose run was trained for more epochs, from
    which none goes back; the latter are said."""
    left, there = [], known(options.out)
    for case in cases(tables, options):
        if case.key in there:
            continue
        *same, _ = case.key
        measured = [int(epochs) for *others, epochs in there if others == same]
        longest = max([*measured, trained_for(case)])
        if longest <= case.epochs:
            left.append(case)
        else:
            print(*case.key, f"left out: {longest} epochs are there", flush=True)
    return left


def trained_for(case: Case) -> int:
    """The epochs that there are of a run, measured or not."""
    last = case.folder / CHECKPOINTS / "last.ckpt"
    if not last.exists():
        return 0
    saved = read_saved(last).content
    return saved["epoch"] + ended_its_epoch(saved)


def run(left: list[Case], tables: dict[str, Any], options: argparse.Namespace) -> None:
    lines = [  # here, as Hydra is not for threads
        line_of(case, tables[case.table]["rows"][case.row], options.root) for case in left
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            pool.submit(train, case, line): case for case, line in zip(left, lines, strict=True)
        }
        try:
            for future in as_completed(futures):
                case, seconds = futures[future], round(future.result())
                found = measure(case.folder, tables[case.table])
                append(asdict(case) | {"seconds": seconds} | found, options.out)
                print(*case.key, *found.values(), f"{seconds} s", flush=True)
        except BaseException:  # those that are running stop by themselves, or come to their end
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    every = published()
    ours = [name for name, about in every.items() if "command" not in about]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=f"default: all of {', '.join(ours)}; or docs")
    parser.add_argument("--rows", nargs="+", default=[], help="some of the rows; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the paper's epochs")
    parser.add_argument("--quick", action="store_true", help="a small share, an hour for all")
    parser.add_argument("--root", nargs="+", default=[], help="of data, as mnist=FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument("--out", type=Path, default=HERE / "published.csv")
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, got {options.share:g}")
    if wrong := [pair for pair in options.root if "=" not in pair]:
        parser.error(f"--root is DATA=FOLDER, as in mnist=FOLDER, got {wrong[0]}")
    options.root = dict(pair.split("=", 1) for pair in options.root)
    if options.tables == ["docs"]:
        return options
    options.tables = options.tables or ours
    for name in options.tables:
        if name not in every:
            hint = did_you_mean(name, every)
            parser.error(f"unknown table {name}{hint}; known: {', '.join(every)}")
        if "command" in every[name]:
            parser.error(f"another command makes the table {name}: {every[name]['command']}")
    rows = {name: row for table in options.tables for name, row in every[table]["rows"].items()}
    for name in options.rows:
        if name not in rows:
            parser.error(f"unknown row {name}{did_you_mean(name, rows)}; known: {', '.join(rows)}")
        if reason := why_not(rows[name], options.root):
            parser.error(f"the row {name} cannot be run: {reason}")
    return options


def main() -> None:
    options = parsed()
    if options.tables == ["docs"]:
        published_page.write(published(), options.out)
        return
    tables = {name: published()[name] for name in options.tables}
    try:
        run(remaining(tables, options), tables, options)
    except subprocess.CalledProcessError as error:
        experiment = next(a for a in error.cmd if a.startswith("experiment="))
        sys.exit(f"{experiment} ended with {error.returncode}; the same command goes on with it")


if __name__ == "__main__":
    main()
