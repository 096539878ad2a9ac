"""The recipes for photographs beside principal components, on pictures that no training has seen.

python benchmarks/photographs.py PICTURES HELD_OUT [--steps 600 3000] [--out FILE.csv] [--seeds 0]

PICTURES and HELD_OUT are folders of pictures. `python train.py experiment=photos` and `photo_codes`
train on the first, each in a process of its own; the principal components are of the same pictures.
A row is the mean squared error of the reconstructions of the second folder, for values in [0, 1],
and its ratio to that of 64 components.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turns import write  # noqa: E402
from datamodules.image_folder import ImageFolder  # noqa: E402
from vae_lab import VAE, pictures  # noqa: E402

COMPONENTS = 64
SIZE = 96
SHOWN = 8  # pictures, in the figure
CODES = "model.latents=1 ema=null"  # one of 512 at each place
RECIPES = {
    "photos": "experiment=photos",
    "photo_codes": "experiment=photo_codes",
    "gumbel_512": "experiment=photo_codes model.categories=512",
    "vq_512": f"experiment=photos model=vq_vae model.categories=512 {CODES}",
    "fsq_512": f"experiment=photos model=fsq_vae model.levels=[8,8,8] {CODES}",
}
FIELDS = ("recipe", "steps", "seed", "mse", "ratio", "codes", "seconds")


def load(folder: str) -> Tensor:
    """All pictures [N, 3, 96, 96] of a folder, in [0, 1], read as a run reads them."""
    data = ImageFolder(root=folder, image_size=SIZE, batch_size=1, test_size=1, val_size=1)
    parts = data.open()
    images = torch.cat([part.read(torch.arange(len(part))).images for part in parts])
    return images.float() / 255


def components(train: Tensor, x: Tensor) -> Tensor:
    """The reconstructions of x by the first principal components of `train`."""
    mean = train.flatten(1).mean(0)
    axes = torch.linalg.svd(train.flatten(1) - mean, full_matrices=False).Vh[:COMPONENTS]
    return ((x.flatten(1) - mean) @ axes.T @ axes + mean).view_as(x).clamp(0, 1)


def trained(recipe: str, folder: str, steps: int, seed: int, run: Path) -> tuple[VAE, float]:
    """The released model of a run, and the seconds that the whole command took."""
    began = time.perf_counter()
    command = [sys.executable, "train.py", *RECIPES[recipe].split(), f"data.root={folder}"]
    command += [f"trainer.max_steps={steps}", f"seed={seed}", f"run_dir={run}"]
    command += ["data.val_size=16", "data.test_size=16"]  # nearly all are trained on, as there
    quiet = ["logger=csv", "report=false", "trainer.enable_progress_bar=false"]
    subprocess.run([*command, *quiet], cwd=ROOT, check=True)
    return VAE.from_pretrained(run), time.perf_counter() - began


@torch.no_grad()
def reconstructed(vae: VAE, x: Tensor) -> Tensor:
    return torch.cat([vae.reconstruct(part) for part in x.split(50)])


@torch.no_grad()
def codes_in_use(vae: VAE, x: Tensor) -> int | None:
    """How many codes are the most probable one at some place; None of numbers."""
    latent = vae.latent
    if latent.categories is None:
        return None
    z = torch.cat([latent.mode(vae.encode(part)) for part in x.split(50)])
    return int(latent.numbers(z).unique().numel())


def error(x: Tensor, y: Tensor) -> float:
    return (x - y).square().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures")
    parser.add_argument("held_out")
    parser.add_argument("--steps", type=int, nargs="+", default=[600])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=[*RECIPES][:2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "photographs.csv")
    parser.add_argument("--images", type=Path, default=ROOT / "benchmarks" / "images")
    options = parser.parse_args()
    train, x = load(options.pictures), load(options.held_out)
    plain = components(train, x)
    reference = error(plain, x)
    first = {"recipe": f"{COMPONENTS} components", "mse": round(reference, 5), "ratio": 1.0}
    rows: list[dict[str, Any]] = [dict.fromkeys(FIELDS) | first]
    shown = x[:: max(len(x) // SHOWN, 1)][:SHOWN]
    for steps in options.steps:
        figure = [shown, components(train, shown)]
        for recipe in options.recipes:
            for seed in options.seeds:
                with TemporaryDirectory() as folder:
                    vae, seconds = trained(
                        recipe, options.pictures, steps, seed, Path(folder) / "run"
                    )
                mse = error(reconstructed(vae, x), x)
                ratio, codes = round(mse / reference, 3), codes_in_use(vae, x)
                found = recipe, steps, seed, round(mse, 5), ratio, codes, round(seconds)
                rows.append(dict(zip(FIELDS, found, strict=True)))
                print(rows[-1], flush=True)
            figure.append(reconstructed(vae, shown))
            pictures.save(
                pictures.grid(vae.sample(16), 8), options.images / f"{recipe}_{steps}.png"
            )
        pictures.save(
            pictures.grid(torch.cat(figure), SHOWN), options.images / f"photographs_{steps}.png"
        )
    write(rows, options.out)


if __name__ == "__main__":
    main()
