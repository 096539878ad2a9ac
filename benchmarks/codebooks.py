r"""Codes of 9 bits at each of 7 x 7 places, learned in all the ways there are by the same network.

python benchmarks/codebooks.py [--data mnist] [--steps 1000] [--seeds 0 1 2] [--names VQ FSQ ...]
pip install --no-deps --target FOLDER vector-quantize-pytorch einx einops frozendict loguru \
    torch-einops-utils, and then --peer FOLDER: that package beside them

A row for each name and seed goes into a CSV as it is measured; rows that are there already are not
measured again. What is trained by the copied gradient has a q without randomness, whose ELBO is a
bound all the same; of the peer there is none.
"""

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turns import medians, write  # noqa: E402
from datamodules.fashion_mnist import FashionMNIST  # noqa: E402
from datamodules.mnist import MNIST  # noqa: E402
from vae_lab import VAE  # noqa: E402
from vae_lab.estimators import (  # noqa: E402
    Estimator,
    GumbelSoftmax,
    ReinMax,
    ScoreFunction,
    VectorQuantization,
)
from vae_lab.latents import FSQ, LFQ, Categorical, Codebook, Latent  # noqa: E402
from vae_lab.likelihoods import Bernoulli  # noqa: E402
from vae_lab.networks import Grid  # noqa: E402
from vae_lab.objectives import ELBO  # noqa: E402
from vae_lab.optimization import parameter_groups, rate_factor  # noqa: E402
from vae_lab.schedules import Exponential, schedules  # noqa: E402

DATA = {"mnist": MNIST, "fashion_mnist": FashionMNIST}
SHAPE = (1, 28, 28)
BITS = 9
CODES = 2**BITS
DIM = 8  # of a learned code
BATCH = 64
RATE = 2e-3
WARM = 50  # steps
ROUNDS = 100  # of timed steps


class Contender(Protocol):
    """What trains a network around codes."""

    def groups(self) -> list[dict[str, Any]]:
        """The parameters that the optimizer gets."""

    def set_step(self, step: int) -> None: ...

    def train(self, training: bool) -> None: ...

    def loss(self, x: Tensor) -> Tensor:
        """Of a batch of training, shape []."""

    def measure(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The mean picture of the most probable code, how often each code was chosen [CODES], and
        the ELBO [B]."""


class Ours:
    def __init__(self, latent: Latent, estimator: Estimator) -> None:
        self.vae = network(latent)
        self.estimator, self.objective = estimator, ELBO()
        self.schedules = schedules(nn.ModuleList([self.vae, estimator]))

    def groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.vae, self.objective, self.estimator)

    def set_step(self, step: int) -> None:
        for schedule in self.schedules.values():
            schedule.set_step(step)

    def train(self, training: bool) -> None:
        self.vae.train(training)

    def loss(self, x: Tensor) -> Tensor:
        return -self.objective(self.vae, self.estimator, x).objective.mean()

    def measure(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        bound, latent = self.vae.elbo(x), self.vae.latent
        z = latent.mode(bound.q)
        digits = latent.numbers(z).long().unflatten(1, (latent.num_places, -1))
        base = latent.categories or 2
        code = sum(digits[..., i] * base**i for i in range(digits.shape[-1]))
        chosen = torch.bincount(torch.as_tensor(code).flatten(), minlength=CODES)
        return self.vae.likelihood.mean(self.vae.decode(z)), chosen, bound.elbo


class Peer:
    """A quantiser of vector-quantize-pytorch in the same network, with the same likelihood.

    As its loss is meant to be added to a mean over pixels, the likelihood is one, too.
    """

    def __init__(self, make: Callable[[], nn.Module], dim: int) -> None:
        self.vae, self.dim = network(Codebook(1, CODES, dim, 0.0)), dim
        self.quantize = make()

    def groups(self) -> list[dict[str, Any]]:
        own = [p for name, p in self.vae.named_parameters() if not name.startswith("latent")]
        return [{"params": [*own, *self.quantize.parameters()]}]

    def set_step(self, step: int) -> None:
        pass

    def train(self, training: bool) -> None:
        self.vae.train(training)
        self.quantize.train(training)

    def _pass(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.vae.head(self.vae.encoder(x))  # [B, h, w, D]
        quantized, index, *more = self.quantize(h.flatten(1, 2))
        decoded = self.vae.decoder(quantized.unflatten(1, h.shape[1:3])) + self.vae.output_bias
        parameters = decoded[..., : SHAPE[1], : SHAPE[2]]
        return parameters, index, sum((loss.sum() for loss in more), torch.zeros(()))

    def loss(self, x: Tensor) -> Tensor:
        parameters, _, more = self._pass(x)
        return more - self.vae.likelihood.log_prob(parameters, x).mean() / x[0].numel()

    def measure(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        parameters, index, _ = self._pass(x)
        chosen = torch.bincount(index.flatten(), minlength=CODES)
        return self.vae.likelihood.mean(parameters), chosen, None


def network(latent: Latent) -> VAE:
    return VAE(SHAPE, Grid((16, 32)), latent, Bernoulli())


def ours(steps: int) -> dict[str, Callable[[], Contender]]:
    book = partial(Codebook, 1, CODES, DIM)
    warm = partial(Exponential, 1.0, 0.5, steps)  # a temperature that falls
    drawn = partial(book, 1.0, learn_temperature=True)
    return {
        "VQ": lambda: Ours(book(0.0), VectorQuantization()),
        "VQ by the gradient": lambda: Ours(book(0.0, decay=None), VectorQuantization()),
        "VQ, rotation": lambda: Ours(book(0.0), VectorQuantization(rotation=True)),
        "SQ, Gumbel": lambda: Ours(drawn(), GumbelSoftmax(warm())),
        "SQ, ReinMax": lambda: Ours(drawn(), ReinMax()),
        "SQ, leave-one-out": lambda: Ours(drawn(), ScoreFunction(4, "leave_one_out")),
        "FSQ": lambda: Ours(FSQ((8, 8, 8)), VectorQuantization(0.0)),
        "FSQ, not whitened": lambda: Ours(FSQ((8, 8, 8), whiten=0), VectorQuantization(0.0)),
        "LFQ": lambda: Ours(LFQ(BITS), VectorQuantization()),
        "Gumbel": lambda: Ours(Categorical(1, CODES), GumbelSoftmax(warm())),
        "ReinMax": lambda: Ours(Categorical(1, CODES), ReinMax()),
        "leave-one-out": lambda: Ours(Categorical(1, CODES), ScoreFunction(4, "leave_one_out")),
    }


def peers(folder: Path | None) -> dict[str, Callable[[], Contender]]:
    """Those of the package in this folder; none without one."""
    if folder is None:
        return {}
    sys.path.append(str(folder))
    from vector_quantize_pytorch import FSQ as OtherFSQ
    from vector_quantize_pytorch import VectorQuantize

    settings = {"codebook_size": CODES, "decay": 0.9, "kmeans_init": True}
    revived = {"threshold_ema_dead_code": 1}
    return {
        "its VQ": lambda: Peer(lambda: VectorQuantize(DIM, **settings), DIM),
        "its VQ, revived": lambda: Peer(lambda: VectorQuantize(DIM, **settings, **revived), DIM),
        "its FSQ": lambda: Peer(lambda: OtherFSQ([8, 8, 8]), 3),
    }


def stepper(
    contender: Contender, x: Tensor, steps: int, compiled: bool = False
) -> Callable[[], None]:
    """Takes the next step of training."""
    contender.train(True)
    loss = torch.compile(contender.loss) if compiled else contender.loss
    optimizer = torch.optim.AdamW(contender.groups(), RATE, weight_decay=0.0, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    factor = rate_factor(WARM, "cosine", lambda: steps)
    done = 0

    def step() -> None:
        nonlocal done
        contender.set_step(done)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(done)
        optimizer.zero_grad()
        loss(x[torch.randint(len(x), (BATCH,))]).backward()
        optimizer.step()
        done += 1

    return step


@torch.no_grad()
def measured(contender: Contender, x: Tensor) -> dict[str, Any]:
    contender.train(False)
    squares, chosen, bounds = 0.0, torch.zeros(CODES), []
    for batch in x.split(500):
        mean, counts, elbo = contender.measure(batch)
        squares += F.mse_loss(mean, batch, reduction="sum").item()
        chosen += counts
        bounds += [] if elbo is None else [elbo]
    perplexity = torch.special.entr(chosen / chosen.sum()).sum().exp().item()
    return {
        "mse": squares / x.numel(),
        "elbo": torch.cat(bounds).mean().item() if bounds else math.nan,
        "usage": (chosen > 0).float().mean().item(),
        "perplexity": perplexity,
    }


def trained(make: Callable[[], Contender], seed: int, steps: int, x: Tensor, test: Tensor) -> Any:
    torch.manual_seed(seed)
    contender = make()
    step, began = stepper(contender, x, steps), time.perf_counter()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - began
    return measured(contender, test) | {"seconds": seconds}


def table(rows: list[dict[str, Any]], milliseconds: dict[str, float]) -> str:
    """Markdown: means over the seeds, and standard deviations where there are several."""
    columns = {"mse": ".5f", "elbo": ".2f", "usage": ".1%", "perplexity": ".0f", "seconds": ".0f"}
    head = ["", "squared error", "ELBO, nats", "codes in use", "perplexity", "seconds"]
    head += ["ms a step"] if milliseconds else []
    lines = [" | ".join(head), "|".join([" --- "] * len(head))]
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [name]
        for column, form in columns.items():
            values = [float(row[column]) for row in rows if row["name"] == name]
            if any(math.isnan(value) for value in values):  # nobody knows it of the peer
                cells.append("")
                continue
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):{form}}{spread}")
        if milliseconds:
            cells.append(f"{1000 * milliseconds[name]:.1f}" if name in milliseconds else "")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, default="mnist")
    parser.add_argument("--root", help="the folder of the data; by default where train.py looks")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--names", nargs="+", help="some of the table's rows; by default all")
    parser.add_argument("--peer", type=Path, help="the folder with vector-quantize-pytorch")
    parser.add_argument("--compile", action="store_true", help="time compiled steps")
    parser.add_argument("--out", type=Path, help="default: benchmarks/codebooks_DATA.csv")
    options = parser.parse_args()
    out = options.out or ROOT / "benchmarks" / f"codebooks_{options.data}.csv"
    images = DATA[options.data](root=options.root).load()
    x, test = images.train.float() / 255, images.test.float() / 255
    known = ours(options.steps) | peers(options.peer)
    if options.compile:
        known.pop("its VQ, revived", None)  # torch 2.14 fails to compile it
    if unknown := {*(options.names or [])} - {*known}:
        parser.error(f"--names must be some of {', '.join(known)}, got {', '.join(unknown)}")
    chosen = {name: known[name] for name in options.names or known}
    rows: list[dict[str, Any]] = []
    if out.exists():
        with out.open(newline="") as file:
            rows = [*csv.DictReader(file)]
    for seed in options.seeds:
        for name, make in chosen.items():
            case = {"name": name, "steps": str(options.steps), "seed": str(seed)}
            if not any(case.items() <= row.items() for row in rows):
                rows.append(case | trained(make, seed, options.steps, x, test))
                write(rows, out)
                print(*rows[-1].values(), flush=True)
    steps = {
        name: stepper(make(), x, options.steps, options.compile) for name, make in chosen.items()
    }
    wanted = [row for row in rows if row["steps"] == str(options.steps) and row["name"] in chosen]
    print(table(wanted, medians(steps, ROUNDS)))


if __name__ == "__main__":
    main()
