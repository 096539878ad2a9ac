r"""Greeks of an option are gradients of an expectation: three estimators against Black and Scholes.

.. math:: V = \mathbb{E}_{z \sim q}\big[e^{-rT} \text{payoff}(e^z)\big], \qquad
          q = \mathcal{N}\big(\log S_0 + (r - \sigma^2 / 2) T, \; \sigma \sqrt{T}\big)

z is the log-price at maturity. Delta and vega are V's derivatives by S_0 and sigma: q is
differentiable in both, so `estimator(q, payoff).backward()` gives them. Delta is an expectation
itself, of a function of z that also knows S_0, so gamma is the same call once more:

    pathwise delta, of the call       e^{-rT} 1[S_T > K] S_T / S_0     which jumps at K
    likelihood-ratio delta, of any    e^{-rT} payoff d log q / d S_0

A pathwise derivative is blind to a jump: no path of the digital option changes its payoff when
S_0 moves a little, so its delta comes out as 0. The script says which of its rows are so.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal

from vae_lab import figures
from vae_lab.estimators import Estimator, MeasureValued, Reparameterization, ScoreFunction

STRIKE, RATE, TIME, SPOT, SIGMA = (
    100.0,
    0.05,
    1.0,
    100.0,
    0.2,
)  # time in years
DISCOUNT = math.exp(-RATE * TIME)
ESTIMATORS = {
    "pathwise": Reparameterization(2),
    "likelihood ratio": ScoreFunction(2, "leave_one_out"),
    "measure-valued": MeasureValued(2),
}
Payoff = Callable[[Tensor], Tensor]  # log-price at maturity -> discounted money, any shape
Delta = Callable[[Payoff, Tensor, Tensor], Payoff]  # the function of z whose mean is delta


def call(z: Tensor) -> Tensor:
    return DISCOUNT * (z.exp() - STRIKE).relu()


def digital(z: Tensor) -> Tensor:
    return DISCOUNT * (z.exp() > STRIKE).to(z)


def log_price(spot: Tensor, sigma: Tensor) -> Normal:
    drift = (RATE - sigma.square() / 2) * TIME
    return Normal(spot.log() + drift, sigma * math.sqrt(TIME), validate_args=False)


def pathwise_delta(payoff: Payoff, spot: Tensor, sigma: Tensor) -> Payoff:
    return lambda z: DISCOUNT * (z.exp() > STRIKE) * z.exp() / spot  # of the call


def ratio_delta(payoff: Payoff, spot: Tensor, sigma: Tensor) -> Payoff:
    q = log_price(spot, sigma)
    return lambda z: payoff(z) * (z - q.mean) / (q.variance * spot)


def black_scholes(payoff: Payoff, spot: Tensor, sigma: Tensor) -> Tensor:
    """The exact value, differentiable as often as one likes."""
    deviation, normal = sigma * math.sqrt(TIME), Normal(0.0, 1.0, validate_args=False)
    d2 = (log_price(spot, sigma).mean - math.log(STRIKE)) / deviation
    in_the_money = DISCOUNT * normal.cdf(d2)
    if payoff is digital:
        return in_the_money
    return spot * normal.cdf(d2 + deviation) - STRIKE * in_the_money


def exact(payoff: Payoff, greek: str, spot: float) -> float:
    at = torch.tensor([spot, SIGMA], dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(black_scholes(payoff, *at), at, create_graph=True)[0]
    if greek == "gamma":
        return torch.autograd.grad(first[0], at)[0][0].item()
    return first[["delta", "vega"].index(greek)].item()


ROWS: dict[str, tuple[Payoff, str, Delta | None]] = {
    "call delta": (call, "delta", None),
    "call vega": (call, "vega", None),
    "call gamma, of pathwise delta": (call, "gamma", pathwise_delta),
    "call gamma, of ratio delta": (call, "gamma", ratio_delta),
    "digital delta": (digital, "delta", None),
    "digital vega": (digital, "vega", None),
    "digital gamma, of ratio delta": (digital, "gamma", ratio_delta),
}


def jumps(f: Payoff) -> bool:
    """Is f discontinuous at the strike, so that its pathwise derivative misses something."""
    below, above = f(math.log(STRIKE) + torch.tensor([-1e-9, 1e-9], dtype=torch.float64)).tolist()
    return abs(above - below) > 1e-6


def estimate(estimator: Estimator, name: str, spot: float, paths: int) -> tuple[float, float, bool]:
    """The Greek, its standard error, and whether a jump was missed; each path is a datum of q."""
    payoff, greek, delta = ROWS[name]
    s, sigma = (torch.full((paths,), v, dtype=torch.float64) for v in (spot, SIGMA))
    wanted = (sigma if greek == "vega" else s).requires_grad_()
    f = delta(payoff, s, sigma) if delta else payoff
    value = estimator(log_price(s, sigma), f)  # [paths]
    gradient = torch.zeros(paths)
    if value.requires_grad:  # the digital payoff has no derivative at all
        (gradient,) = torch.autograd.grad(value.sum(), wanted)
    at_one = delta(payoff, s.detach()[0], sigma.detach()[0]) if delta else payoff
    blind = estimator.needs_differentiable and jumps(at_one)
    return gradient.mean().item(), gradient.std().item() / math.sqrt(paths), blind


def table(paths: int) -> dict[tuple[str, str], float]:
    """Prints every row and answers with its z-score, at most 999, against Black and Scholes."""
    scores = {}
    print(f"{'':30}{'exact':>10}" + "".join(f"{name + ', s.e., z':>28}" for name in ESTIMATORS))
    for name, (payoff, greek, _) in ROWS.items():
        truth, blind_to = exact(payoff, greek, SPOT), []
        line = f"{name:30}{truth:10.4g}"
        for method, estimator in ESTIMATORS.items():
            mean, error, blind = estimate(estimator, name, SPOT, paths)
            z = (mean - truth) / max(error, 1e-15)
            scores[name, method] = max(-999.0, min(999.0, z))
            line += f"{mean:11.4g}{error:10.1e}{scores[name, method]:+7.1f}"
            blind_to += [method] if blind else []
        print(line + "".join(f"  <- {method} is blind to the jump at K" for method in blind_to))
    return scores


def picture(paths: int, path: Path) -> None:
    """Three Greeks against the spot price, with two standard errors about each estimate."""
    names = ["digital delta", "digital vega", "call gamma, of pathwise delta"]
    figure, axes = figures.panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        fine = list(range(60, 151))
        axis.plot(fine, [exact(*ROWS[name][:2], s) for s in fine], color="black", linewidth=1)
        for index, (method, estimator) in enumerate(ESTIMATORS.items()):
            spots = [s + 1.5 * (index - 1) for s in range(65, 150, 8)]  # side by side
            points = [estimate(estimator, name, s, paths) for s in spots]
            means, errors = [m for m, *_ in points], [2 * e for _, e, _ in points]
            look = {"color": figures.COLOURS[index], "fmt": "os^"[index], "markersize": 4}
            axis.errorbar(spots, means, errors, **look, label=method)
        axis.set(xlabel="spot price", title=name)
    axes[0].plot([], [], color="black", linewidth=1, label="Black and Scholes")
    axes[0].legend(frameon=False, fontsize=8)
    figures.write(figure, path)


def main(arguments: Sequence[str] | None = None) -> dict[tuple[str, str], float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400_000, help="paths in the table")
    parser.add_argument("--seed", type=int, default=0)
    out = {"type": figures.png("option_greeks.png"), "default": "examples/images"}
    parser.add_argument("--out", **out, help="a folder, or a file.png")
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    scores = table(args.steps)
    picture(max(args.steps // 100, 2), args.out)
    return scores


if __name__ == "__main__":
    main()
