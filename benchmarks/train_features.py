"""Trains the feature network of the package and writes its weights, with their test accuracies.

python benchmarks/train_features.py [--epochs 5]

Takes some nine minutes of one core. What it prints belongs into the docstring of
vae_lab.evaluation.features.FeatureNetwork.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datamodules.base import Images  # noqa: E402
from datamodules.digits import Digits  # noqa: E402
from datamodules.fashion_mnist import FashionMNIST  # noqa: E402
from vae_lab.evaluation.features import SIDE, WEIGHTS, FeatureNetwork  # noqa: E402

BATCH = 128
REPEAT = 10  # times that each digit is among the training images, of which they are few
SHIFT = 2  # pixels, at most, that a training image is moved by


def scaled(images: Tensor) -> Tensor:
    """Images [N, 1, H, W] uint8 of any size as [N, 1, 28, 28] in [0, 1]."""
    return F.interpolate(images.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)


def data() -> list[Images]:
    """Clothes with labels 0 to 9 and digits with labels 10 to 19."""
    sets = []
    for first, datamodule in ((0, FashionMNIST()), (10, Digits())):
        datamodule.prepare_data()
        x, y, test_x, test_y = datamodule.load()
        sets.append(Images(scaled(x), y + first, scaled(test_x), test_y + first))
    return sets


def moved(x: Tensor) -> Tensor:
    """A batch [B, 1, H, W], moved by a few pixels in either direction."""
    dy, dx = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    return F.pad(x, [SHIFT] * 4)[..., dy : dy + SIDE, dx : dx + SIDE]


@torch.no_grad()
def accuracy(network: FeatureNetwork, x: Tensor, y: Tensor) -> float:
    guesses = [network.classifier(network(part)).argmax(1) for part in x.split(500)]
    return (torch.cat(guesses) == y).double().mean().item()


def train(network: FeatureNetwork, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for epoch in range(epochs):
        network.train()
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(network.classifier(network(moved(x[rows]))), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}, loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    sets, network = data(), FeatureNetwork()
    clothes, digits = sets
    x, y = (torch.cat([clothes[part], *[digits[part]] * REPEAT]) for part in (0, 1))
    train(network, x, y, epochs)
    network = network.half().float().eval()  # as it is stored, in 16 bits
    found = [f"{accuracy(network, s.test, s.test_labels):.4f}" for s in sets]
    facts = {"fashion_mnist": found[0], "digits": found[1], "licence": "MIT"}
    weights = {
        name: x.half() if x.is_floating_point() else x for name, x in network.state_dict().items()
    }
    save_file(weights, WEIGHTS, facts)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size} bytes, test accuracies {facts}")


if __name__ == "__main__":
    main()
