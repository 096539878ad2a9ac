"""The case grid-16 of contenders.py: the recipe for photographs, on drawn pictures of 96 x 96."""

import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (3, 96, 96)
LATENTS = 8  # at each place
PICTURES = 2_000
HELD_OUT = 0.1  # for validation, and as much for the test
STEPS = 3_000  # of the recipe, over which the learning rate falls

Done = Callable[[], None]


def pictures() -> Any:
    """Drawn pictures, [2000, 3, 96, 96] uint8: a mosaic, and a disc on it."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    ground = F.interpolate(torch.rand(PICTURES, 3, 4, 4, generator=generator), SHAPE[1:])
    places = torch.linspace(-1, 1, SHAPE[1])
    x, y, radius = torch.rand(3, PICTURES, 1, 1, 1, generator=generator) - 0.5
    away = (places - x).square() + (places.unsqueeze(1) - y).square()
    disc = (away < (radius + 0.7).square() / 4).float()
    return (255 * (0.7 * ground + 0.3 * disc)).byte()


def write(folder: Path) -> None:
    """The drawn pictures as files."""
    from PIL import Image

    for number, picture in enumerate(pictures().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / f"{number:04}.png")


def net() -> Any:
    """The VAE that one writes by hand, with the same convolutions and torch's dense layers."""
    import math

    import torch
    from torch import Tensor, nn

    from vae_lab.dense import Dense
    from vae_lab.networks import Grid

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            network = Grid([32, 64, 96])
            self.encoder = network.encoder(SHAPE)
            self.head = nn.Linear(self.encoder.features, 2 * LATENTS)
            self.decoder = network.decoder(LATENTS, SHAPE)
            self.log_sigma = nn.Parameter(torch.tensor(0.25).log())
            for layer in self.modules():
                if isinstance(layer, Dense):
                    layer.__class__ = nn.Linear

        def forward(self, x: Tensor) -> Tensor:
            mean, log_var = self.head(self.encoder(x)).chunk(2, -1)
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
            error = (x - self.decoder(z)) * torch.exp(-self.log_sigma)
            log_px_z = -error.square() / 2 - self.log_sigma - math.log(2 * math.pi) / 2
            kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1)
            return (kl.flatten(1).sum(1) - log_px_z.flatten(1).sum(1)).mean()

    return Net()


def by_hand(size: int, done: Done) -> None:
    import torch

    model, images = net(), pictures()[: round(PICTURES * (1 - 2 * HELD_OUT))]
    scale = [model.log_sigma]
    weights = [p for p in model.parameters() if p is not model.log_sigma]
    groups = [{"params": weights, "lr": 2e-3}, {"params": scale, "lr": 0.02}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    while True:
        for rows in torch.randperm(len(images)).split(size):
            optimizer.zero_grad()
            model(images[rows].float().div_(255)).backward()
            optimizer.step()
            rate.step()
            done()


def train_py(size: int, done: Done, *settings: str) -> None:
    """train.py as it is, but for the W&B logger, which would leave a process behind."""
    from models.base import VAEModule

    VAEModule.on_train_batch_end = lambda *_: done()  # type: ignore[method-assign]
    line = ["experiment=photos", f"data.batch_size={size}", f"trainer.max_steps={STEPS}"]
    line += [f"data.val_size={HELD_OUT}", f"data.test_size={HELD_OUT}", "logger=csv", *settings]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        root.mkdir()
        write(root)
        sys.argv = ["train.py", *line, f"data.root={root}", f"run_dir={folder}/run"]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


CONTENDERS: dict[str, Callable[[int, Done], None]] = {
    "train.py": lambda *case: train_py(*case, "ema=null"),
    "train.py, averaged and flipped": lambda *case: train_py(*case, "data.flip=true"),
    "by hand": by_hand,
}
