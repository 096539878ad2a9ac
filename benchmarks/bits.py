"""Does a change of the code change a single bit of what is trained?

python benchmarks/bits.py --out before.txt        # at the old commit
python benchmarks/bits.py --against before.txt    # at the new one: names what differs, exits with 1

What only one of the two has, such as a new network, is named and is no difference.

Trains every model, estimator, objective, network and likelihood for a few steps on the digits, one
of them stopped and resumed, by what `python train.py` would run; and uses every model of the zoo.
Each is a line: its name, and the sha256 of all that its checkpoints and its metrics say but for
clocks and paths.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from same_runs import metrics, state  # noqa: E402

import train  # noqa: E402
from vae_lab import VAE, zoo  # noqa: E402

SMALL = [
    *("data=digits", "data.batch_size=20", "network.hidden=[16,8]", "trainer=cpu", "threads=1"),
    *("trainer.max_epochs=2", "trainer.limit_train_batches=3", "trainer.limit_val_batches=2"),
    *("trainer.limit_test_batches=2", "trainer.enable_progress_bar=false", "logger=csv"),
    *("trainer.log_every_n_steps=1", "callbacks.pictures=null", "report=false", "save.keep=1"),
]
CODES = ["model=gumbel_vae", "model.latents=3", "model.categories=3"]
BITS = ["model=gumbel_vae", "model.latents=3", "model.categories=null"]
NUMBERS = ["model=gaussian_vae", "model.latents=3"]
COUNTS = ["model=poisson_vae", "model.latents=3"]
OF_OTHER_DATA = {"network": ["temporal_conv", "transformer"], "likelihood": ["columns"]}
OTHERS = {  # the estimators that are not for codes, or not for the ELBO
    **dict.fromkeys(("arm", "arms", "disarm", "rodeo"), BITS),
    **dict.fromkeys(("lax", "reparameterization", "sticking_the_landing"), NUMBERS),
    **dict.fromkeys(("dreg", "ovis"), [*NUMBERS, "objective=iwae"]),
    **dict.fromkeys(("fini", "measure_valued"), COUNTS),
    "vector_quantization": ["model=vq_vae", "model.latents=3", "model.categories=4"],
}


def lines() -> dict[str, list[str]]:
    """What is typed for each run, by its name."""
    found = {f"model={name}": ["model.latents=3"] for name in choices("model")}
    found |= {f"estimator={name}": OTHERS.get(name, CODES) for name in choices("estimator")}
    found |= {f"objective={name}": NUMBERS for name in choices("objective")}
    for group, others in OF_OTHER_DATA.items():
        of_pictures = [name for name in choices(group) if name not in others]
        found |= {f"{group}={name}": NUMBERS for name in of_pictures}
    return {name: [name, *line, *small(name)] for name, line in found.items()}


def choices(group: str) -> list[str]:
    """The files of a group."""
    return sorted(path.stem for path in (ROOT / "configs" / group).glob("[!_]*.yaml"))


def small(name: str) -> list[str]:
    """`SMALL`, without the layers of an MLP where there is another network."""
    own = name.startswith("network=") and name != "network=mlp"
    return [line for line in SMALL if not (own and line.startswith("network.hidden"))]


def run(*typed: str) -> None:
    """What `python train.py` does with it; shows what it said where it fails."""
    log = Path("log.txt")
    try:
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            sys.argv = ["train.py", *train.exit_on_mistake([*typed])]
            train.main()
    except SystemExit:
        sys.exit(f"{' '.join(typed)}: {log.read_text()}")


def answers() -> Iterator[tuple[str, str]]:
    """Every name, and the sha256 of what it gave."""
    for name, line in lines().items():
        run("run_dir=run", *line)
        yield name, digest(trained("run"))
        Path("run").rename(name)
    begun = ["run_dir=resumed", *CODES, *SMALL, "trainer.max_epochs=1"]
    run(*begun)
    run("resume=resumed", "trainer.max_epochs=2")
    yield "resumed", digest(trained("resumed"))
    for name in zoo.names():
        yield name, digest(used(VAE.from_pretrained(name)))


def trained(folder: str) -> list[Any]:
    """All that a run has left of its training."""
    found = [state(Path(folder), name) for name in ("last", "best")]
    for checkpoint in found:
        checkpoint.pop("sha256", None)
        del checkpoint["config"]  # it lists the settings that there are: a new one trains nothing
    return [found, metrics(Path(folder))]


def used(vae: VAE) -> list[torch.Tensor]:
    """What a model says of seeded noise."""
    torch.manual_seed(0)
    x = torch.rand(20, *vae.shape).round()
    return [vae.elbo(x).elbo, vae.log_likelihood(x, 20), vae.reconstruct(x), vae.sample(4)]


def digest(value: Any) -> str:
    return hashlib.sha256("\n".join(flat(value)).encode()).hexdigest()


def flat(value: Any, where: str = "") -> Iterator[str]:
    """A line for everything in a nested state."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from flat(value[key], f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from flat(item, f"{where}.{i}")
    elif isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield f"{where} {value.dtype} {[*value.shape]} {hashlib.sha256(bits).hexdigest()}"
    else:
        yield f"{where} {value!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="a file to write the answers to")
    parser.add_argument("--against", type=Path, help="a file of answers to compare with")
    arguments = parser.parse_args()
    before = arguments.against.read_text().splitlines() if arguments.against else []
    out = arguments.out and arguments.out.absolute()
    found = []
    with TemporaryDirectory() as folder, chdir(folder):
        for name, sha256 in answers():
            found.append(f"{name} {sha256}")
            print(found[-1], flush=True)
    if out:
        out.write_text("\n".join(found) + "\n")
    if arguments.against:
        answers_of = [dict(line.split() for line in lines) for lines in (before, found)]
        alone = sorted(answers_of[0].keys() ^ answers_of[1].keys())
        both = answers_of[0].keys() & answers_of[1].keys()
        differing = sorted(name for name in both if len({of[name] for of in answers_of}) > 1)
        print(f"in one only: {', '.join(alone) or 'none'}")
        print(f"differing: {', '.join(differing) or 'none'}, of {len(both)}")
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
