"""How the cost of a step grows with the batch, the latent, the samples and the image.

python benchmarks/growth.py [--rounds 9] [--out FILE.csv]

One size is varied at a time; the sizes are measured in turn, medians over the rounds, as ratios to
the smallest. The exponent is that of time ~ size^a between the two largest: 1 is linear, and less
means that something else, fixed, still counts.
"""

import argparse
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turns import medians, write  # noqa: E402
from vae_lab import VAE, figures  # noqa: E402
from vae_lab.estimators import Reparameterization, ScoreFunction  # noqa: E402
from vae_lab.latents import Bernoulli as Bits  # noqa: E402
from vae_lab.latents import Gaussian  # noqa: E402
from vae_lab.likelihoods import Bernoulli  # noqa: E402
from vae_lab.networks import MLP, Conv  # noqa: E402
from vae_lab.objectives import ELBO  # noqa: E402


def step(
    batch: int = 128,
    latents: int = 20,
    samples: int = 1,
    side: int = 28,
    conv: bool = False,
    bits: bool = False,
) -> Callable[[], None]:
    """A whole optimizer step of one model."""
    network, latent = Conv() if conv else MLP([512]), Bits(latents) if bits else Gaussian(latents)
    vae = VAE((1, side, side), network, latent, Bernoulli())
    estimator = ScoreFunction(samples) if bits else Reparameterization(samples)
    objective, x = ELBO(), torch.rand(batch, 1, side, side)
    objective(vae, estimator, x[:2])  # shapes of lazy layers
    optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], fused=True)

    def run() -> None:
        optimizer.zero_grad()
        (-objective(vae, estimator, x).objective.mean()).backward()
        optimizer.step()

    return run


GROWTH: dict[str, tuple[list[int], Callable[[int], Callable[[], None]]]] = {
    "batch (mlp)": ([32, 128, 512, 2048], lambda size: step(batch=size)),
    "batch (conv)": ([8, 32, 128, 256], lambda size: step(batch=size, conv=True)),
    "latents (mlp)": ([16, 64, 256, 1024], lambda size: step(latents=size)),
    "samples (mlp)": ([1, 4, 16, 64], lambda size: step(batch=32, samples=size)),
    "samples of bits (mlp)": (
        [2, 8, 32, 64],
        lambda size: step(batch=32, samples=size, bits=True, latents=200),
    ),
    "pixels (mlp)": ([16, 32, 64, 128], lambda side: step(batch=32, side=side)),
    "pixels (conv)": ([16, 32, 64, 128], lambda side: step(batch=16, side=side, conv=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "growth.csv")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    figure, axes = figures.panels(2)
    for index, (name, (sizes, make)) in enumerate(GROWTH.items()):
        pixels = name.startswith("pixels")
        steps = {str(size): make(size) for size in sizes}
        taken = [*medians(steps, asked.rounds).values()]
        counts = [size**2 if pixels else size for size in sizes]
        slopes = [None] + [
            math.log(later / now) / math.log(large / small)
            for (now, later), (small, large) in zip(pairwise(taken), pairwise(counts), strict=True)
        ]
        for count, seconds, slope in zip(counts, taken, slopes, strict=True):
            exponent = None if slope is None else round(slope, 2)
            row = {"of": name, "size": count, "time": round(seconds / taken[0], 2)}
            rows.append(row | {"exponent": exponent})
        print(f"{name:24} exponents {', '.join(f'{s:.2f}' for s in slopes[1:])}", flush=True)
        growth = [count / counts[0] for count in counts], [t / taken[0] for t in taken]
        axes[name.startswith(("pixels", "latents"))].plot(
            *growth, marker="o", label=name, **figures.style(index)
        )
    for axis in axes:
        axis.plot([1, 64], [1, 64], color="grey", linewidth=0.8, label="linear")
        axis.set(
            xscale="log", yscale="log", xlabel="size, of the smallest", ylabel="time of a step"
        )
        axis.legend(frameon=False, fontsize=7)
    figures.write(figure, asked.out.with_name("images") / f"{asked.out.stem}.png")
    write(rows, asked.out)


if __name__ == "__main__":
    main()
