"""The recipes for photographs beside principal components, on pictures that no training has seen.

python benchmarks/photographs.py PICTURES HELD_OUT [--steps 600 3000] [--out FILE.csv] [--seeds 0]
                                 [--recipes vq_1024 vq_perceptual tokenizer] [--runs FOLDER]

PICTURES and HELD_OUT are folders of pictures. `python train.py experiment=photos` and `photo_codes`
train on the first, each in a process of its own; the principal components are of the same pictures.
A row has the mean squared error of the reconstructions of the second folder, for values in [0, 1],
its ratio to that of 64 components, and what task=evaluate measures of them besides. Runs are kept
in --runs, and a finished one that is there is not trained again.
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
from vae_lab.evaluation.distance import FeatureDistance, structural_similarity  # noqa: E402
from vae_lab.evaluation.features import extract  # noqa: E402
from vae_lab.evaluation.samples import frechet_distance  # noqa: E402

COMPONENTS = 64
SHOWN = 8  # pictures, in the figure
CODES = "model.latents=1"  # one of 512 at each place
VQ = "experiment=photos model=vq_vae model.categories=1024 model.latents=1"  # the tokenizer's
FSQ = "experiment=photos model=fsq_vae model.latents=1"
SHARP = "objective=perceptual objective.features=multiscale objective.perceptual=40"
RECIPES = {
    "photos": "experiment=photos",
    "photo_codes": "experiment=photo_codes",
    "gumbel_512": "experiment=photo_codes model.categories=512",
    "vq_512": f"experiment=photos model=vq_vae model.categories=512 {CODES}",
    "fsq_512": f"experiment=photos model=fsq_vae model.levels=[8,8,8] {CODES}",
    "fsq_1000": FSQ,
    "vq_1024": VQ,
    "vq_perceptual": f"{VQ} {SHARP}",
    "tokenizer": "experiment=tokenizer",
    "vq_1024_fast": f"{VQ} model.optimizer.lr=4e-3",  # the tokenizer's
    "fsq_tokenizer": "experiment=tokenizer model=fsq_vae ~model.categories model.optimizer.lr=2e-3 "
    "objective.adversarial=1 objective.discriminator_lr=1e-4",
}
QUALITY = ("mse", "psnr", "ssim", "feature_distance", "rfid")
FIELDS = ("recipe", "size", "steps", "seed", *QUALITY, "ratio", "codes", "seconds")


def load(folder: str, size: int) -> Tensor:
    """All pictures [N, 3, size, size] of a folder, in [0, 1], read as a run reads them."""
    data = ImageFolder(root=folder, image_size=size, batch_size=1, test_size=1, val_size=1)
    parts = data.open()
    images = torch.cat([part.read(torch.arange(len(part))).images for part in parts])
    return images.float() / 255


def components(train: Tensor, x: Tensor) -> Tensor:
    """The reconstructions of x by the first principal components of `train`."""
    mean = train.flatten(1).mean(0)
    axes = torch.linalg.svd(train.flatten(1) - mean, full_matrices=False).Vh[:COMPONENTS]
    return ((x.flatten(1) - mean) @ axes.T @ axes + mean).view_as(x).clamp(0, 1)


def trained(
    recipe: str, folder: str, size: int, steps: int, seed: int, runs: Path
) -> tuple[VAE, int | None]:
    """The released model of a run, and the seconds that the whole command took."""
    run = runs / f"{recipe}_{size}_{steps}_{seed}"
    if (run / "release").exists():
        return VAE.from_pretrained(run), None
    began = time.perf_counter()
    command = [sys.executable, "train.py", *RECIPES[recipe].split(), f"data.root={folder}"]
    command += [f"data.image_size={size}", f"trainer.max_steps={steps}", f"seed={seed}"]
    command += ["data.val_size=16", "data.test_size=16"]  # nearly all are trained on, as there
    quiet = ["logger=csv", "report=false", "trainer.enable_progress_bar=false"]
    subprocess.run([*command, f"run_dir={run}", *quiet], cwd=ROOT, check=True)
    return VAE.from_pretrained(run), round(time.perf_counter() - began)


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


@torch.no_grad()
def quality(x: Tensor, y: Tensor) -> dict[str, float]:
    """How far pictures y are from x: the means over them, and the distance of both sets."""
    error = (x - y).square().flatten(1).mean(1)
    found = {"mse": error, "psnr": -10 * error.log10(), "ssim": structural_similarity(x, y)}
    pairs, distance = zip(x.split(50), y.split(50), strict=True), FeatureDistance()
    found["feature_distance"] = torch.cat([distance(*pair) for pair in pairs])
    means = {name: value.mean().item() for name, value in found.items()}
    means["rfid"] = frechet_distance(extract(x), extract(y))
    return {name: float(f"{value:.3g}") for name, value in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures")
    parser.add_argument("held_out")
    parser.add_argument("--steps", type=int, nargs="+", default=[600])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=[*RECIPES][:2])
    parser.add_argument("--size", type=int, default=96, help="of the pictures, in pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "photographs.csv")
    parser.add_argument("--images", type=Path, default=ROOT / "benchmarks" / "images")
    parser.add_argument("--name", default="photographs", help="of the figure")
    parser.add_argument("--runs", type=Path, help="the folder of the runs; they are not kept else")
    options = parser.parse_args()
    size = options.size
    train, x = (load(folder, size) for folder in (options.pictures, options.held_out))
    found = quality(x, components(train, x))
    reference = found["mse"]
    rows = [_row(recipe=f"{COMPONENTS} components", size=size, ratio=1.0, **found)]
    shown = x[:: max(len(x) // SHOWN, 1)][:SHOWN]
    with TemporaryDirectory() as temporary:
        runs = options.runs or Path(temporary)
        for steps in options.steps:
            figure = [shown, components(train, shown)]
            for recipe in options.recipes:
                for seed in options.seeds:
                    vae, seconds = trained(recipe, options.pictures, size, steps, seed, runs)
                    run = {"recipe": recipe, "size": size, "steps": steps, "seed": seed}
                    run |= {"codes": codes_in_use(vae, x), "seconds": seconds}
                    found = quality(x, reconstructed(vae, x))
                    rows.append(_row(ratio=round(found["mse"] / reference, 3), **run, **found))
                    print(rows[-1], flush=True)
                figure.append(reconstructed(vae, shown))
                samples = options.images / f"{recipe}_{steps}.png"
                pictures.save(pictures.grid(vae.sample(16), 8), samples)
            image = options.images / f"{options.name}_{steps}.png"
            pictures.save(pictures.grid(torch.cat(figure), SHOWN), image)
    write(rows, options.out)


def _row(**found: Any) -> dict[str, Any]:
    return dict.fromkeys(FIELDS) | found


if __name__ == "__main__":
    main()
