"""What ReinMax's own package gives in a plain loop, beside the rows of the table `reinmax`.

python benchmarks/reinmax_authors.py --root FOLDER --peer FOLDER [--sizes 8x4] [--start torch he]
    [--seeds 0] [--epochs 160 16]

`--root` has MNIST's files, `--peer` the package `reinmax`: pip install reinmax --no-deps --target
FOLDER. The network, the loss and the optimizer are written out here, with nothing of vae_lab. What
is left to choose is how the weights start: `torch` as torch.nn.Linear does, which is the authors';
`he` has the normal weights of He et al. that vae_lab's networks have, `mean` the mean image in the
decoder's bias, `he+mean` both, as vae_lab does. A line of the CSV has the mean ELBO of the last
epoch, while it trained, and that of all training and all test images after it. A line that is there
is not run again.
"""

import argparse
import math
import os
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks import published, published_page  # noqa: E402
from benchmarks.turns import write  # noqa: E402
from datamodules.mnist import MNIST  # noqa: E402

BATCH = 100
RELU = math.sqrt(2)
STARTS = ("torch", "he", "mean", "he+mean")
KEY = ("size", "start", "seed", "epochs")


class Plain(nn.Module):
    """784-512-256 and mirror, with a choice of `categories` for each of `latents` variables."""

    def __init__(self, latents: int, categories: int, temperature: float, reinmax: Any) -> None:
        super().__init__()
        self.shape = (latents, categories)
        self.temperature, self.reinmax = temperature, reinmax
        size = latents * categories
        self.encoder = layers(784, 512, 256, size)
        self.decoder = layers(size, 256, 512, 784)

    def forward(self, x: Tensor) -> Tensor:
        """The negative ELBO [N] of grey images [N, 784]."""
        logits = self.encoder(x).view(-1, *self.shape)
        z, q = self.reinmax(logits, self.temperature)
        error = F.binary_cross_entropy_with_logits(
            self.decoder(z.flatten(1)), x, reduction="none"
        ).sum(1)
        latents, categories = self.shape
        return error + (q * (q + 1e-10).log()).sum((1, 2)) + latents * math.log(categories)


def layers(*sizes: int) -> nn.Sequential:
    pairs = zip(sizes, sizes[1:], strict=False)
    return nn.Sequential(*[part for a, b in pairs for part in (nn.Linear(a, b), nn.ReLU())][:-1])


@torch.no_grad()
def begin(model: Plain, start: str, mean: Tensor) -> None:
    """Leaves the weights as torch has drawn them, or draws them as `start` says."""
    if "he" in start.split("+"):
        output = model.decoder[-1]
        for layer in [*model.encoder[:-1:2], *model.decoder[::2]]:
            gain = 1 if layer is output else RELU
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
    if "mean" in start.split("+"):
        model.decoder[-1].bias.copy_((0.998 * mean + 1e-3).logit())


def train(model: Plain, images: Tensor, config: Any, epochs: int) -> float:
    """As the row of the config says; the mean ELBO of the last epoch, while it trained."""
    radam = config.model.lr_warmup_steps > 0  # which the rows have a warm-up in the place of
    kind = torch.optim.RAdam if radam else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=config.model.optimizer.lr)
    for _ in range(epochs):
        total = torch.zeros(())
        for x in images[torch.randperm(len(images))].split(BATCH):
            loss = model(x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
    return -total.item() / len(images)


@torch.no_grad()
def measured(model: Plain, name: str, images: Tensor) -> dict[str, str]:
    """The mean ELBO of all of them, and its standard error."""
    each = -torch.cat([model(part) for part in images.split(1000)]).double()
    error = each.std() / math.sqrt(len(images))
    return {name: f"{each.mean():.3f}", f"{name}_error": f"{error:.3f}"}


def run(
    size: str, start: str, seed: int, epochs: int, options: argparse.Namespace
) -> dict[str, str]:
    """Trains one as the row `{size}_reinmax` says, and measures it."""
    from reinmax import reinmax

    config = published.settings("reinmax", f"{size}_reinmax")
    data = MNIST(root=options.root, batch_size=BATCH, val_size=1)
    data.prepare_data()
    images, test = (published.images(data, split).flatten(1) for split in ("train", "test"))
    torch.manual_seed(seed)
    shape = config.model.latents, config.model.categories
    model = Plain(*shape, config.estimator.temperature, reinmax)
    begin(model, start, images.mean(0))
    began = time.perf_counter()
    last = train(model, images, config, epochs)
    seconds = time.perf_counter() - began
    found = measured(model, "train_elbo", images) | measured(model, "test_elbo", test)
    return {"last_epoch": f"{last:.3f}"} | found | {"seconds": f"{seconds:.0f}"}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder of MNIST's files")
    parser.add_argument("--peer", required=True, help="the folder of the package reinmax")
    parser.add_argument("--sizes", nargs="+", default=["8x4"], choices=["8x4", "4x24", "10x30"])
    parser.add_argument("--start", nargs="+", default=["torch"], choices=STARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, nargs="+", default=[160])
    parser.add_argument("--out", type=Path, default=published.HERE / "reinmax_authors.csv")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    sys.path.insert(0, options.peer)
    for case in product(options.sizes, options.start, options.seeds, options.epochs):
        lines: list[dict[str, Any]] = list(published_page.read(options.out))
        key = dict(zip(KEY, map(str, case), strict=True))
        if not any(all(line[name] == key[name] for name in KEY) for line in lines):
            line = key | run(*case, options)
            write([*published_page.read(options.out), line], options.out)
            print(*line.values(), flush=True)


if __name__ == "__main__":
    main()
