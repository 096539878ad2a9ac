"""What data without labels add to a classifier that has few.

python benchmarks/semi_supervised.py [--data mnist fashion_mnist] [--labelled 100 1000]
    [--seeds 0 1 2] [--root FOLDER] [--epochs 20] [--out FILE.csv]

`python train.py experiment=semi_supervised` against the same classifier, layer for layer, that is
trained on the same labelled images alone, as long as its training loss falls; of its accuracies on
the test images the best one counts, which favours it. A row that is in the file already is kept.
"""

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turns import write  # noqa: E402
from tasks import build  # noqa: E402
from vae_lab import VAE  # noqa: E402
from vae_lab.data.rows import labels_of  # noqa: E402

STEPS, LOOK = 2000, 50  # of the training on labels alone, and how often it is measured
BATCH = 100
FIELDS = ("data", "labelled", "seed", "epochs", "semi_supervised", "labels_alone", "seconds")


def settings(data: str, labelled: int, seed: int, options: argparse.Namespace) -> list[str]:
    line = ["experiment=semi_supervised", f"data={data}", f"data.labelled={labelled}"]
    line += [f"seed={seed}", f"data.split_seed={seed}", f"trainer.max_epochs={options.epochs}"]
    return line + ([f"data.root={options.root}"] if options.root else [])


def together(line: list[str], run: Path) -> VAE:
    """Trained on all images, by the command."""
    quiet = ["logger=csv", "report=false", "trainer.enable_progress_bar=false"]
    quiet += ["callbacks.pictures=null", f"run_dir={run}"]
    subprocess.run([sys.executable, "train.py", *line, *quiet], cwd=ROOT, check=True)
    return VAE.from_pretrained(run)


def classifier(vae: VAE) -> nn.Module:
    """That of q(y|x), with new weights."""
    condition = vae.condition
    for layer in condition.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return nn.Sequential(condition.encoder, condition.head)


def alone(network: nn.Module, data: Any, seed: int) -> float:
    """The best accuracy on the test images while it is trained on the labelled ones."""
    torch.manual_seed(seed)
    train = data._splits["train"]
    rows = (labels_of(train) >= 0).nonzero().flatten()
    pixels, y = train.images[rows].float() / 255, train.labels[rows]
    batches = [*data.test_dataloader()]
    test, of_test = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    best = 0.0
    for step in range(STEPS):
        some = torch.randint(len(y), (min(BATCH, len(y)),))
        x = torch.bernoulli(pixels[some])
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y[some]).backward()
        optimizer.step()
        if step % LOOK == LOOK - 1:
            best = max(best, accuracy(network, test, of_test))
    return best


@torch.no_grad()
def accuracy(network: Any, x: Tensor, y: Tensor) -> float:
    return (network(x).argmax(-1) == y).float().mean().item()


def measure(data: str, labelled: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    line = settings(data, labelled, seed, options)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        datamodule = build.make(compose("train", line).data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        vae = together(line, Path(folder) / "run")
    seconds = time.perf_counter() - began
    batches = [*datamodule.test_dataloader()]
    with torch.no_grad():
        right = torch.cat([vae.classify(x) == y for x, y, _ in batches])
    torch.manual_seed(seed)
    found = right.float().mean().item(), alone(classifier(vae), datamodule, seed)
    numbers = (round(100 * value, 2) for value in found)
    row = data, labelled, seed, options.epochs, *numbers, round(seconds)
    return dict(zip(FIELDS, row, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["mnist"])
    parser.add_argument("--labelled", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--root", help="of the data")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "semi_supervised.csv")
    options = parser.parse_args()
    rows = [*csv.DictReader(options.out.open())] if options.out.exists() else []
    done = {tuple(str(row[name]) for name in FIELDS[:4]) for row in rows}
    for data in options.data:
        for labelled in options.labelled:
            for seed in options.seeds:
                if (data, str(labelled), str(seed), str(options.epochs)) not in done:
                    rows.append(measure(data, labelled, seed, options))
                    print(rows[-1], flush=True)
                    write(rows, options.out)


if __name__ == "__main__":
    main()
