"""What an estimator costs beside its decoder evaluations.

python benchmarks/estimator_cost.py [--batch 100] [--rounds 40] [--out FILE.csv]

A whole step (encoder, estimator, decoder, backward, fused AdamW) of an MLP 784-512-256 VAE, as a
ratio to a straight-through step (bits, categories) or a reparameterised one (Gaussians) with as
many samples as the estimator has decoder evaluations. Both run in turn, in one process; medians
over the rounds.

An estimator that needs df/dz before the backward pass (REBAR, MuProp, ...) pays for one more pass
through the decoder. For it `derived` is the ratio to a step that also takes that derivative.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.distributions import Distribution

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import build  # noqa: E402
from vae_lab import VAE  # noqa: E402
from vae_lab.aggregates import Aggregate  # noqa: E402
from vae_lab.estimators import (  # noqa: E402
    REBAR,
    RODEO,
    DoubleCV,
    Estimator,
    MuProp,
    Reparameterization,
    StraightThrough,
)
from vae_lab.estimators.base import Integrand  # noqa: E402
from vae_lab.estimators.control import slope  # noqa: E402
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Latent  # noqa: E402
from vae_lab.likelihoods import Bernoulli as BernoulliLikelihood  # noqa: E402
from vae_lab.networks import MLP  # noqa: E402
from vae_lab.objectives import ELBO, IWAE, Objective  # noqa: E402

LATENTS = {"bits": Bernoulli(200), "codes": Categorical(20, 10), "gaussian": Gaussian(20)}
SMALL = Categorical(2, 4)  # for those that enumerate, or swap every pair of categories


class WithDerivative(StraightThrough):
    """Straight-through that also takes df/dz, and does nothing with it."""

    def estimate(
        self, q: Distribution, f: Integrand, aggregate: Aggregate, context: torch.Tensor | None
    ) -> torch.Tensor:
        z = self.sample(q)
        values = f(z)
        slope(values, z, create_graph=False)
        return aggregate(values)


DERIVED = (REBAR, MuProp, DoubleCV, RODEO)


class Step:
    """One optimizer step of a fresh model with this estimator."""

    def __init__(self, latent: Latent, estimator: Estimator, objective: Objective) -> None:
        torch.manual_seed(0)
        self.vae = VAE((1, 28, 28), MLP(), latent, BernoulliLikelihood())
        self.estimator, self.objective = estimator, objective
        objective(self.vae, estimator, torch.zeros(2, 1, 28, 28))  # shapes of lazy layers
        own = [*self.vae.parameters(), *estimator.parameters()]
        self.optimizer = torch.optim.AdamW([p for p in own if p.requires_grad], fused=True)

    def __call__(self, x: torch.Tensor) -> float:
        began = time.perf_counter()
        self.optimizer.zero_grad()
        (-self.objective(self.vae, self.estimator, x).objective.mean()).backward()
        self.optimizer.step()
        return time.perf_counter() - began

    def evaluations(self, x: torch.Tensor) -> int:
        rows: list[int] = []
        hook = self.vae.decoder.register_forward_hook(lambda m, i, out: rows.append(len(out)))
        self(x)
        hook.remove()
        return sum(rows) // len(x)


def measure(
    name: str, kind: str, latent: Latent, x: torch.Tensor, rounds: int
) -> dict[str, object]:
    estimator = build.make(OmegaConf.load(ROOT / "configs" / "estimator" / f"{name}.yaml"))
    objective = ELBO() if estimator.single_sample else IWAE()
    step = Step(latent, estimator, objective)
    count = step.evaluations(x)
    plain = Reparameterization if kind == "gaussian" else StraightThrough
    steps = [step, Step(latent, plain(count), ELBO())]
    if isinstance(estimator, DERIVED) and kind != "gaussian":
        steps.append(Step(latent, WithDerivative(count), ELBO()))
    for _ in range(3):
        [each(x) for each in steps]
    seconds = zip(*([each(x) for each in steps] for _ in range(rounds)), strict=True)
    own, *others = map(statistics.median, seconds)
    ratio, derived, *_ = [*(round(own / other, 3) for other in others), None]
    row = {"estimator": name, "latent": kind, "evaluations": count}
    return row | {"ratio": ratio, "derived": derived}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "estimator_cost.csv")
    asked = parser.parse_args()
    x = torch.rand(asked.batch, 1, 28, 28).round()
    rows = []
    for file in sorted((ROOT / "configs" / "estimator").glob("*.yaml")):
        cls = type(build.make(OmegaConf.load(file)))
        for kind, latent in LATENTS.items():
            if not cls.accepts(latent.prior()):
                continue
            large = file.stem in ("exact", "arsm")
            if large and kind != "codes":
                continue
            row = measure(file.stem, kind, SMALL if large else latent, x, asked.rounds)
            rows.append(row)
            print("  ".join(f"{value!s:>24}" for value in row.values()), flush=True)
    with asked.out.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    within = sum(row["ratio"] <= 1.15 for row in rows)
    print(f"{within} of {len(rows)} within 1.15")


if __name__ == "__main__":
    main()
