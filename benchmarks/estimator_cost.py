"""What an estimator costs beside its decoder evaluations.

python benchmarks/estimator_cost.py [--batch 100] [--rounds 40] [--out FILE.csv]

A whole step (encoder, estimator, decoder, backward, fused AdamW) of an MLP 784-512-256 VAE on 28x28
pixels, and of a convolutional one on 32x32, as a ratio to a straight-through step (bits,
categories) or a reparameterised one (Gaussians) with as many samples as the estimator has decoder
evaluations. Both run in turn, in one process; medians over the rounds. On the MLP also those that
can be asked for many samples, with many.

An estimator that needs df/dz before the backward pass (MuProp, Double CV, RODEO) pays for one more
pass through the decoder, and one that learns from its variance (REBAR) for the derivatives of that
pass. For these `derived` is the ratio to a step that also takes those derivatives.
"""

import argparse
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.distributions import Distribution

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turns import medians, write  # noqa: E402
from tasks import build  # noqa: E402
from vae_lab import VAE  # noqa: E402
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
from vae_lab.networks import MLP, Conv  # noqa: E402
from vae_lab.objectives import ELBO, IWAE, Objective  # noqa: E402

CONFIGS = ROOT / "configs" / "estimator"
LATENTS = {"bits": Bernoulli(200), "codes": Categorical(20, 10), "gaussian": Gaussian(20)}
MANY = {
    "arms": {"num_samples": 16},
    "carms": {"num_samples": 16},
    "score_function": {"num_samples": 16},
    "sum_and_sample": {"num_summed": 50},
    "unordered_set": {"num_samples": 16},
}
SMALL = Categorical(2, 4)  # for those that enumerate, or swap every pair of categories


class WithDerivatives(torch.nn.Module):
    """An estimator beside which df/dz is taken, and a derivative of that, for nothing."""

    def __init__(self, plain: Estimator, order: int) -> None:
        super().__init__()
        self.plain, self.order = plain, order

    def forward(self, q: Distribution, f: Integrand, **options: Any) -> torch.Tensor:
        def differentiated(z: torch.Tensor) -> torch.Tensor:
            values = f(z)
            df_dz = slope(values, z, f, create_graph=self.order > 1)
            if self.order > 1:
                torch.autograd.grad(df_dz.square().sum(), z, retain_graph=True)
            return values

        return self.plain(q, differentiated, **options)


NETWORKS = {"mlp": (MLP(), (1, 28, 28)), "conv": (Conv(), (1, 32, 32))}
DERIVATIVES = {MuProp: 1, DoubleCV: 1, RODEO: 1, REBAR: 2}  # of f, before the backward pass


class Step:
    """One optimizer step of a fresh model with this estimator."""

    def __init__(
        self, network: str, latent: Latent, estimator: torch.nn.Module, objective: Objective
    ) -> None:
        torch.manual_seed(0)
        recipe, shape = NETWORKS[network]
        self.vae = VAE(shape, recipe, latent, BernoulliLikelihood())
        self.estimator, self.objective = estimator, objective
        objective(self.vae, estimator, torch.zeros(2, *shape))  # shapes of lazy layers
        own = [*self.vae.parameters(), *estimator.parameters()]
        self.optimizer = torch.optim.AdamW([p for p in own if p.requires_grad], fused=True)

    def __call__(self, x: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        (-self.objective(self.vae, self.estimator, x).objective.mean()).backward()
        self.optimizer.step()

    def evaluations(self, x: torch.Tensor) -> int:
        rows: list[int] = []
        hook = self.vae.decoder.register_forward_hook(lambda m, i, out: rows.append(len(out)))
        self(x)
        hook.remove()
        return sum(rows) // len(x)


def measure(
    name: str,
    options: dict[str, int],
    network: str,
    kind: str,
    latent: Latent,
    x: torch.Tensor,
    rounds: int,
) -> dict[str, object]:
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    estimator = build.make(OmegaConf.merge(config, options))
    objective = ELBO() if estimator.single_sample else IWAE()
    step = Step(network, latent, estimator, objective)
    count = step.evaluations(x)
    plain = Reparameterization if kind == "gaussian" else StraightThrough
    steps = [step, Step(network, latent, plain(count), ELBO())]
    if order := DERIVATIVES.get(type(estimator)):
        steps.append(Step(network, latent, WithDerivatives(plain(count), order), ELBO()))
    turns = {str(number): partial(each, x) for number, each in enumerate(steps)}
    own, *others = medians(turns, rounds, warm=3).values()
    ratio, derived, *_ = [*(round(own / other, 3) for other in others), None]
    label = " ".join([name, *(f"{option}={value}" for option, value in options.items())])
    row = {"network": network, "estimator": label, "latent": kind, "evaluations": count}
    return row | {"ratio": ratio, "derived": derived}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--estimators", nargs="+")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "estimator_cost.csv")
    asked = parser.parse_args()
    rows = []
    for network, file in product(asked.networks, sorted(CONFIGS.glob("*.yaml"))):
        if asked.estimators and file.stem not in asked.estimators:
            continue
        x = torch.rand(asked.batch, *NETWORKS[network][1]).round()
        cls = type(build.make(OmegaConf.load(file)))
        many = [MANY[file.stem]] if network == "mlp" and file.stem in MANY else []
        for (kind, latent), options in product(LATENTS.items(), [{}, *many]):
            if not cls.accepts(latent.prior()):
                continue
            large = file.stem in ("exact", "arsm")
            if large and kind != "codes":
                continue
            chosen = SMALL if large else latent
            rows.append(measure(file.stem, options, network, kind, chosen, x, asked.rounds))
            print("  ".join(f"{value!s:>28}" for value in rows[-1].values()), flush=True)
    write(rows, asked.out)
    for network in asked.networks:
        own = [row["derived"] or row["ratio"] for row in rows if row["network"] == network]
        print(f"{network}: {sum(ratio <= 1.15 for ratio in own)} of {len(own)} within 1.15")


if __name__ == "__main__":
    main()
