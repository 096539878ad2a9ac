r"""A model that samples its own next input: backpropagation through what it wrote itself.

.. math:: q_\theta(z | y) = \prod_t \mathcal{N}\big(z_t; \mu_\theta(z_{t-1}, t),
          \sigma_\theta(z_{t-1}, t)\big), \quad z_0 = y, \qquad
          f(z, z') = \tfrac{1}{2} \|z - x\| + \tfrac{1}{2} \|z' - x\| - \tfrac{1}{2} \|z - z'\|

A row z_t of 8 pixels is predicted from the row before, sampled, and fed back, eight times. Only the
first step knows the digit y: afterwards the writer's own sample is all that it remembers, so it
has to write what it can go on from. The whole free-running sequence is one distribution q, and
the energy score f compares a pair of independent sequences with a real image x; its mean is least
where q is the data's distribution. The gradient goes through the samples: along their path, or by
their score. Detach the sample that is fed back, and a row never hears what it did to later rows.

Source: Gneiting & Raftery, *Strictly Proper Scoring Rules, Prediction, and Estimation*, 2007
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Normal

from vae_lab import figures
from vae_lab.estimators import Estimator, Reparameterization, ScoreFunction

ROWS, PIXELS, CLASSES = 8, 8, 10


class Writer(nn.Module):
    """Mean and scale of the next row from the row before; the digit stands before the first."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.start = nn.Embedding(CLASSES, PIXELS)
        self.first = nn.Linear(PIXELS + ROWS, hidden)
        self.last = nn.Linear(hidden, 2 * PIXELS)

    def forward(self, row: Tensor, step: int) -> Normal:
        place = F.one_hot(torch.tensor(step), ROWS).expand(*row.shape[:-1], ROWS)
        features = torch.tanh(self.first(torch.cat([row, place], -1)))
        mean, scale = self.last(features).chunk(2, -1)
        return Normal(mean, 0.01 + F.softplus(scale - 1), validate_args=False)


class FreeRun:
    """Pairs of images as the writer writes them: batch shape [B], event shape [2, ROWS, PIXELS]."""

    has_rsample = True

    def __init__(self, writer: Writer, digit: Tensor, detach: bool = False) -> None:
        self.writer, self.digit, self.detach = writer, digit, detach

    def rsample(self, sample_shape: tuple[int, ...]) -> Tensor:
        start = self.writer.start(self.digit).unsqueeze(1)  # [B, 1, PIXELS]
        rows = [start.expand(*sample_shape, -1, 2, -1)]
        for step in range(ROWS):
            before = rows[-1].detach() if self.detach and step else rows[-1]
            rows.append(self.writer(before, step).rsample())
        return torch.stack(rows[1:], -2)  # [S, B, 2, ROWS, PIXELS]

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        return self.rsample(sample_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        start = self.writer.start(self.digit)[:, None, None].expand_as(z[..., :1, :])
        before = torch.cat([start, z[..., :-1, :]], -2)
        steps = [
            self.writer(before[..., step, :], step).log_prob(z[..., step, :])
            for step in range(ROWS)
        ]
        return torch.stack(steps).sum((0, -1, -2))  # [S, B]


def energy_score(z: Tensor, x: Tensor) -> Tensor:
    """Of pairs z [S, B, 2, ROWS, PIXELS] for images x [B, ROWS, PIXELS], [S, B]."""
    first, second = z.unbind(-3)
    return (norm(first - x) + norm(second - x) - norm(first - second)) / 2


def norm(image: Tensor) -> Tensor:
    return (image.square().sum((-1, -2)) + 1e-8).sqrt()


METHODS: dict[str, tuple[Estimator | None, bool]] = {  # estimator, is the sample fed back detached
    "pathwise": (Reparameterization(1), False),
    "score function": (ScoreFunction(8, "leave_one_out"), False),
    "pathwise, detached": (Reparameterization(1), True),
    "likelihood, on real rows": (None, False),
}


def images() -> tuple[Tensor, Tensor]:
    """All 1797 digits, [N, ROWS, PIXELS] in [0, 1], and their labels."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)


def train(method: str, steps: int, x: Tensor, y: Tensor) -> Writer:
    estimator, detach = METHODS[method]
    writer = Writer()
    optimizer = torch.optim.Adam(writer.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,))
        q, real = FreeRun(writer, y[batch], detach), x[batch]
        if estimator is None:
            loss = -q.log_prob(real.unsqueeze(1))  # it never reads a row of its own
        else:
            loss = estimator(q, partial(energy_score, x=real))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        schedule.step()
    return writer


@torch.no_grad()
def held_out_score(writer: Writer, x: Tensor, y: Tensor) -> float:
    return energy_score(FreeRun(writer, y).sample((20,)), x).mean().item()


@torch.no_grad()
def picture(writers: dict[str, Writer], x: Tensor, y: Tensor, path: Path) -> None:
    """Each digit, real and as each method writes it: once, and the mean of a hundred times."""
    digits = torch.arange(CLASSES)
    real = [x[y == digit] for digit in digits]
    once, mean = [torch.stack([r[0] for r in real])], [torch.stack([r.mean(0) for r in real])]
    for writer in writers.values():
        written = FreeRun(writer, digits).sample((100,))[:, :, 0]  # [100, CLASSES, ROWS, PIXELS]
        once, mean = [*once, written[0]], [*mean, written.mean(0)]
    figure, axes = figures.panels(2, height=2.2)
    for axis, lines, title in zip(axes, (once, mean), ("one image", "mean image"), strict=True):
        tiles = F.pad(torch.stack(lines).clamp(0, 1), (1, 1, 1, 1))  # [lines, CLASSES, 10, 10]
        axis.imshow(tiles.transpose(1, 2).flatten(2).flatten(0, 1).numpy(), cmap="gray")
        axis.set(title=title, xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    axes[0].set_yticks([10 * i + 4.5 for i in range(len(lines))], ["real", *writers])
    figures.write(figure, path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The energy score on held-out digits, less is better, [seeds] for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    out = {"type": figures.png("own_samples.png"), "default": "examples/images"}
    parser.add_argument("--out", **out, help="a folder, or a file.png")
    args = parser.parse_args(arguments)
    x, y = images()
    scores, writers = {}, {}
    print(f"{'trained by':26}{'energy score':>12}{'s.e.':>8}")
    for method in METHODS:
        found = []
        for seed in range(args.seed, args.seed + args.seeds):
            torch.manual_seed(seed)
            writers[method] = train(method, args.steps, x[:1400], y[:1400])
            found.append(held_out_score(writers[method], x[1400:], y[1400:]))
        scores[method] = torch.tensor(found)
        error = scores[method].std() / args.seeds**0.5
        print(f"{method:26}{scores[method].mean():12.4f}{error:8.4f}", flush=True)
    picture(writers, x[1400:], y[1400:], args.out)
    return scores


if __name__ == "__main__":
    main()
