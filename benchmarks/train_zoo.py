"""Trains the models of the zoo and writes their releases, with numbers of the stored weights.

python benchmarks/train_zoo.py [NAME ...]

All nine take about 85 minutes of one core. One that is complete in runs/zoo/ is not trained again.
"""

import math
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tasks import build  # noqa: E402
from vae_lab import VAE, zoo  # noqa: E402
from vae_lab.description import RELAXATION  # noqa: E402
from vae_lab.pretrained import card  # noqa: E402

# REINFORCE needs the KL's warm-up on the few digits, or the posterior collapses.
DIGITS = "network.hidden=[256,128] objective=elbo_warmup trainer.max_epochs=150"
RECIPES = {
    f"{model}-{data}": f"{settings} model={model}"
    for data, settings in {"digits": DIGITS, "fashion_mnist": "experiment=fashion_mnist"}.items()
    for model in ("gaussian_vae", "gumbel_vae", "reinforce_vae")
} | {"gaussian_vae-sample_images": "experiment=photos data=sample_images"}
# Second stages: the name of the model, and of the prior that it has got.
PRIORS = {
    "gaussian_vae-digits-mixture": "prior=mixture model.optimizer.lr=1e-2",
    "gumbel_vae-digits-autoregressive": "prior=autoregressive prior.width=32 prior.layers=2",
}
RECIPES |= {
    name: f"task=prior checkpoint={name.rpartition('-')[0]} {settings} trainer.max_epochs=60"
    for name, settings in PRIORS.items()
}
SAMPLES = {"digits": 1000, "fashion_mnist": 100, "sample_images": 10}  # of z, in the bound on log p


def data_of(name: str) -> str:
    """The data set of a model of the zoo."""
    return name.split("-")[1]


def compose_recipe(name: str) -> DictConfig:
    """The config that a model of the zoo, or of its first stage, was trained with."""
    name = name.rpartition("-")[0] if name in PRIORS else name
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", RECIPES[name].split())


def test_images(config: DictConfig) -> Tensor:
    """The test split as the model met it, binarised in the one way of every evaluation."""
    data = build.make(config.data)
    data.prepare_data()
    data.setup("test")
    return torch.cat([x for x, *_ in data.test_dataloader()])


@torch.no_grad()
def bounds(vae: VAE, x: Tensor, num_samples: int, batch: int = 100) -> tuple[Tensor, Tensor]:
    """The ELBO and the importance-weighted bound on log p(x) of every image, [N] each, in nats.

    The same numbers whenever they are asked for, also of the first images alone.
    """
    found = []
    for number, images in enumerate(x.split(batch)):
        torch.manual_seed(number)
        elbo = vae.elbo(images).elbo
        found.append(torch.stack([elbo, vae.log_likelihood(images, num_samples)]))
    elbo, log_px = torch.cat(found, 1).double()
    return elbo, log_px


def measure(vae: VAE, config: DictConfig, num_samples: int) -> dict[str, Any]:
    """Means over the test split, with the standard errors that its images leave."""
    elbo, log_px = bounds(vae, test_images(config), num_samples)
    return {
        "images": len(elbo),
        "elbo": _summary(elbo),
        "nll": _summary(-log_px) | {"samples": num_samples},
    }


def _summary(values: Tensor) -> dict[str, float]:
    error = values.std() / math.sqrt(len(values))
    return {"mean": round(values.mean().item(), 3), "standard_error": round(error.item(), 3)}


def train(name: str) -> Path:
    """The finished run of a recipe."""
    run_dir = ROOT / "runs" / "zoo" / name
    if not (run_dir / "release" / "config.json").is_file():
        line = [sys.executable, "train.py", *RECIPES[name].split(), "logger=csv"]
        subprocess.run([*line, f"run_dir={run_dir}"], cwd=ROOT, check=True)
    return run_dir


def release(name: str, run_dir: Path) -> dict[str, Any]:
    """Stores a run's model in 16 bits, measures what was stored, and adds that to its card."""
    config, trained = compose_recipe(name), card(run_dir)
    facts = {
        "vae_lab": trained["vae_lab"],
        "licence": "MIT",
        "command": f"python train.py {RECIPES[name]}",
        "commit": trained["commit"],
        "data": {
            "class": config.data._target_.rpartition(".")[2],
            "range": [0, 1],
            "binarize": config.data.binarize,
            "val_size": config.data.val_size,
        },
        **({RELAXATION: trained[RELAXATION]} if RELAXATION in trained else {}),
    }
    folder, vae = zoo.FOLDER / name, VAE.from_pretrained(run_dir)
    vae.save_pretrained(folder, torch.float16, **facts)
    stored = VAE.from_pretrained(folder)
    numbers = measure(stored, config, SAMPLES[data_of(name)])
    stored.save_pretrained(folder, torch.float16, **facts, test=numbers)
    return numbers | {"elbo of 32-bit weights": trained["metrics"]["test/elbo"]}


def table() -> str:
    """The README's table, from the cards."""
    rows = ["| model | trained by | ELBO | NLL |", "| --- | --- | --- | --- |"]
    for name in RECIPES:
        facts = card(name)
        elbo, nll = (
            f"{n['mean']:.2f} +- {n['standard_error']:.2f}"
            for n in (facts["test"]["elbo"], facts["test"]["nll"])
        )
        rows.append(f"| `{name}` | `{facts['command']}` | {elbo} | {nll} |")
    return "\n".join(rows)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"default: all of {', '.join(RECIPES)}")
    names = parser.parse_args().names or [*RECIPES]
    if unknown := set(names) - RECIPES.keys():
        parser.error(f"unknown: {', '.join(unknown)}")
    for name in names:
        print(name, release(name, train(name)))
    print(table())  # for the README


if __name__ == "__main__":
    main()
