r"""A cloud, summarised and resampled again and again: the gradient reaches the first one.

.. math:: z_0 \sim \mathcal{N}(m, s^2)^N, \qquad
          z_{k+1} \sim \mathcal{N}\big(\text{mean}(g(z_k)), \text{std}(g(z_k))^2\big)^N, \qquad
          V(m, s) = \mathbb{E}\big[f(z_K)\big]

A round pushes N points through a network g, keeps their mean and standard deviation, and draws N
new points from them. Every round is an expectation inside an expectation, so V is nested calls of
one estimator: `estimator(q, lambda z: rounds(resampled(g(z)), ...))`, and `V.backward()` moves the
first cloud. With the same noise on both sides, finite differences must agree with the pathwise
gradient; the score function, which sees no derivative of g, must agree within its error.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vae_lab import figures
from vae_lab.estimators import Estimator, Reparameterization, ScoreFunction

POINTS, ROUNDS = 32, 3  # N points in the plane, K rounds
TARGET = torch.tensor([1.0, -0.5, 0.3, 0.3], dtype=torch.float64)  # mean, scale of the last cloud
NAMES = ["mean x", "mean y", "log scale x", "log scale y"]
METHODS = {"pathwise": Reparameterization(1), "score function": ScoreFunction(2, "leave_one_out")}


class Push(nn.Module):
    """A network from the plane to the plane, fixed at random: a turn with a bend in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        self.requires_grad_(False)
        self.turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.turn + self.layers(z)


def cloud(start: Tensor) -> Independent:
    """The first cloud from its mean and log-scale, start [*B, 4]; event [POINTS, 2]."""
    mean, log_scale = start.unsqueeze(-2).expand(*start.shape[:-1], POINTS, 4).chunk(2, -1)
    return Independent(Normal(mean, log_scale.exp(), validate_args=False), 2)


def resampled(z: Tensor) -> Independent:
    """The next cloud, from the mean and the standard deviation of the points of this one."""
    mean, scale = z.mean(-2, keepdim=True).expand_as(z), z.std(-2, keepdim=True).expand_as(z)
    return Independent(Normal(mean, scale, validate_args=False), 2)


def miss(z: Tensor) -> Tensor:
    """f: squared distance of the cloud's mean and scale from the target's, [*B]."""
    return (torch.cat([z.mean(-2), z.std(-2)], -1) - TARGET).square().sum(-1)


def rounds(estimator: Estimator, q: Independent, push: Push, left: int = ROUNDS) -> Tensor:
    """E[f] after `left` more rounds, [*B]; each call adds its S clouds as a batch axis inside."""
    if left == 0:
        return estimator(q, miss)
    return estimator(q, lambda z: rounds(estimator, resampled(push(z)), push, left - 1))


def gradient(method: str, push: Push, start: Tensor, repeats: int) -> Tensor:
    """Independent estimates of V's gradient at start [4], [repeats, 4]: every repeat is a datum."""
    leaves = start.expand(repeats, 4).clone().requires_grad_()
    value = rounds(METHODS[method], cloud(leaves), push)  # [repeats]
    return torch.autograd.grad(value.sum(), leaves)[0]


def finite_differences(push: Push, start: Tensor, repeats: int, step: float = 1e-4) -> Tensor:
    """Central differences with the pathwise gradient's own noise, [repeats, 4]."""
    state = torch.get_rng_state()
    sides = []
    for direction in torch.cat([torch.eye(4), -torch.eye(4)]).to(start):
        torch.set_rng_state(state)
        moved = (start + step * direction).expand(repeats, 4)
        sides.append(rounds(METHODS["pathwise"], cloud(moved), push))
    plus, minus = torch.stack(sides, -1).chunk(2, -1)
    return (plus - minus) / (2 * step)


def table(push: Push, start: Tensor, repeats: int) -> dict[str, Tensor]:
    """Prints the gradients and answers with all estimates, each [repeats, 4]."""
    state = torch.get_rng_state()
    found = {"finite differences": finite_differences(push, start, repeats)}
    torch.set_rng_state(state)
    found |= {method: gradient(method, push, start, repeats) for method in METHODS}
    print(f"{'dV / d':12}" + "".join(f"{name + ', s.e.':>26}" for name in found) + f"{'z':>7}")
    means = {name: g.mean(0) for name, g in found.items()}
    errors = {name: g.std(0) / repeats**0.5 for name, g in found.items()}
    spread = (errors["pathwise"].square() + errors["score function"].square()).sqrt()
    z = (means["score function"] - means["pathwise"]) / spread
    for i, name in enumerate(NAMES):
        cells = "".join(f"{means[n][i]:16.6f}{errors[n][i]:10.6f}" for n in found)
        print(f"{name:12}{cells}{z[i]:+7.1f}")
    worst = (found["pathwise"] - found["finite differences"]).abs().max()
    print(f"pathwise - finite differences, the worst of {4 * repeats} numbers: {worst:.1e}")
    return found


def train(push: Push, start: Tensor, steps: int) -> Tensor:
    """Gradient descent on the first cloud, through all the rounds."""
    start = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([start], lr=0.02)
    for _ in range(steps):
        value = rounds(METHODS["pathwise"], cloud(start.expand(64, 4)), push).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return start.detach()


def picture(push: Push, starts: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """The rounds before and after training, and the gradients with two standard errors."""
    figure, axes = figures.panels(3)
    for axis, (title, start) in zip(axes, starts.items(), strict=False):
        q = cloud(start)
        for k in range(ROUNDS + 1):
            z = q.sample()
            axis.scatter(
                *z.T.tolist(), s=9, color=figures.COLOURS[k], marker="os^D"[k], label=f"round {k}"
            )
            q = resampled(push(z))
        axis.plot(*TARGET[:2].tolist(), "k+", markersize=14, label="target")
        axis.set(title=title, aspect="equal", xlim=(-2.5, 3.5), ylim=(-2, 4))
    axes[1].legend(frameon=False, fontsize=8, loc="upper left")
    for index, (name, g) in enumerate(found.items()):
        places = [i + 0.2 * (index - 1) for i in range(4)]
        look = {"color": figures.COLOURS[index], "fmt": "xos"[index], "markersize": 5}
        errors = 2 * g.std(0) / len(g) ** 0.5
        axes[2].errorbar(places, g.mean(0).tolist(), errors.tolist(), **look, label=name)
    axes[2].set_xticks(range(4), NAMES)
    axes[2].set(title=f"gradient of the first cloud, {len(g)} repeats")
    axes[2].legend(frameon=False, fontsize=8)
    figures.write(figure, path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Tensor]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of descent on the first cloud")
    parser.add_argument("--repeats", type=int, default=4000, help="estimates of the gradient")
    parser.add_argument("--seed", type=int, default=0)
    out = {"type": figures.png("resampled_cloud.png"), "default": "examples/images"}
    parser.add_argument("--out", **out, help="a folder, or a file.png")
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    push = Push()
    start = torch.tensor([-1.0, 1.0, -1.0, -0.5], dtype=torch.float64)
    found = table(push, start, args.repeats)
    end = train(push, start, args.steps)
    with torch.no_grad():
        for name, at in {"before": start, "after": end}.items():
            value = rounds(METHODS["pathwise"], cloud(at.expand(args.repeats, 4)), push)
            print(f"V {name} training: {value.mean():.4f} +- {value.std() / args.repeats**0.5:.4f}")
        picture(push, {"the rounds, before": start, "after": end}, found, args.out)
    return found


if __name__ == "__main__":
    main()
