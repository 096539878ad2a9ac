"""What trains one network, each in a process of its own: on Fashion-MNIST, or (grid) on pictures.

python benchmarks/contenders.py NAME CASE [--seconds 4] [--steps 20]

Prints the median time of a step, in seconds, over blocks of so many steps. The environment is that
of the caller: no thread is set, no policy chosen.
"""

import argparse
import gzip
import os
import runpy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import photo_contenders  # noqa: E402

LATENTS = 20
KEPT = 54_000
FOLDERS = ("/usr/share/datasets/fashion-mnist", "~/.cache/vae_lab/FashionMNIST/raw")
PLACES = [
    Path(folder).expanduser() / f"train-images-idx3-ubyte{suffix}"
    for folder in FOLDERS
    for suffix in ("", ".gz")
]
SHAPE = (1, 28, 28)
CASES = {"mlp-128": ("mlp", 128), "mlp-512": ("mlp", 512)}
CASES |= {"conv-128": ("conv", 128), "conv-512": ("conv", 512)}
CASES |= {"grid-16": ("grid", 16)}

Done = Callable[[], None]  # called after every step; ends the process when it has seen enough


def blocks(steps: int, seconds: float) -> Done:
    """Times blocks of `steps` steps. The first two, in which all is made, do not count."""
    marks: list[float] = []
    count = 0

    def done() -> None:
        nonlocal count
        count += 1
        if count % steps == 0:
            marks.append(time.perf_counter())
            if len(marks) > 4 and marks[-1] - marks[1] > seconds:
                taken = [after - before for before, after in pairwise(marks[1:])]
                print("STEP", statistics.median(taken) / steps, flush=True)
                os._exit(0)

    return done


def recipe(network: str) -> Any:
    from vae_lab.networks import MLP, Conv

    return MLP([512]) if network == "mlp" else Conv()


def net(network: str, ours: bool = False) -> Any:
    """The VAE that one writes by hand: what train.py trains, and nothing else.

    Args:
        ours: with vae_lab's dense layers, and not torch's.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from vae_lab.dense import Dense

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = recipe(network).encoder(SHAPE)
            self.head = nn.Linear(self.encoder.features, 2 * LATENTS)
            self.decoder = recipe(network).decoder(LATENTS, SHAPE)
            for layer in self.modules():
                if isinstance(layer, Dense) and not ours:
                    layer.__class__ = nn.Linear

        def forward(self, x: Tensor) -> Tensor:
            mean, log_var = self.head(self.encoder(x)).chunk(2, -1)
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
            logits = self.decoder(z)
            error = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
            kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
            return (error.flatten(1).sum(1) + kl).mean()

    return Net()


def train_images() -> Any:
    """The training images but those that train.py validates on, [54000, 1, 28, 28] uint8.

    Read without the datamodule, which imports Lightning: with that, every optimizer step of torch
    asks for a GPU's driver, and the loop written by hand would be slower for it.
    """
    import numpy as np
    import torch

    file = next(p for p in PLACES if p.exists())
    data = file.read_bytes()
    data = gzip.decompress(data) if file.suffix == ".gz" else data
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=16).copy()).view(-1, *SHAPE)[:KEPT]


def by_hand(
    network: str,
    size: int,
    done: Done,
    compiled: bool = False,
    fused: bool = True,
    ours: bool = False,
) -> None:
    import torch

    model, images = net(network, ours), train_images()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    loss = torch.compile(model) if compiled else model

    def batches() -> Iterator[Any]:
        while True:
            for rows in torch.randperm(len(images)).split(size)[:-1]:
                yield images[rows].float().div_(255)

    for x in batches():
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
        done()


def train_py(network: str, size: int, done: Done, *settings: str, bare: bool = False) -> None:
    """train.py as it is, but for the W&B logger, which would leave a process behind."""
    from models.base import VAEModule

    VAEModule.on_train_batch_end = lambda *_: done()  # type: ignore[method-assign]
    if bare:
        _leave_all_out()
    line = ["model=gaussian_vae", "data=fashion_mnist", f"network={network}", "logger=csv"]
    line += [f"data.batch_size={size}", f"model.latents={LATENTS}", *settings]
    line += ["network.hidden=[512]"] if network == "mlp" else []
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["train.py", *line, f"run_dir={folder}/run"]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def _leave_all_out() -> None:
    """No loggers, and no callbacks but the noise's seeds; validation goes on."""
    from models.base import VAEModule
    from vae_lab.callbacks import StepSeed

    start = VAEModule.on_train_start

    def on_train_start(self: Any) -> None:
        start(self)
        self.trainer.callbacks = [c for c in self.trainer.callbacks if isinstance(c, StepSeed)]
        self.trainer.loggers = []

    VAEModule.on_train_start = on_train_start  # type: ignore[method-assign]


def plain_lightning(network: str, size: int, done: Done) -> None:
    """What the tutorials show: torchvision's transforms, a DataLoader, self.log."""
    import pytorch_lightning as pl
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(network)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.net(batch)
            self.log("loss", loss, prog_bar=True)
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            done()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    class Pictures(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.images = train_images().squeeze(1).numpy()
            to_float = v2.ToDtype(torch.float32, scale=True)
            self.transform = v2.Compose([v2.ToImage(), to_float])

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.transform(Image.fromarray(self.images[index]))

    loader = torch.utils.data.DataLoader(Pictures(), size, shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(max_epochs=100, default_root_dir=folder)
        trainer.fit(Module(), loader)


def pythae_model(network: str) -> Any:
    """pythae's VAE, with the same encoder and decoder."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch import Tensor

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            parts = net(network)
            self.trunk, self.head = parts.encoder, parts.head

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_var = self.head(self.trunk(x)).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = net(network).decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.trunk(z).sigmoid())

    settings = VAEConfig(input_dim=SHAPE, latent_dim=LATENTS, reconstruction_loss="bce")
    return VAE(settings, encoder=Encoder(), decoder=Decoder())


def pythae(network: str, size: int, done: Done) -> None:
    """pythae's trainer, on images that it has in memory as floats."""
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class StepDone(TrainingCallback):
        def on_train_step_end(self, *_: Any, **__: Any) -> None:
            done()

    images = train_images().float().div(255)
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder, per_device_train_batch_size=size, num_epochs=100
        )
        data = BaseDataset(images, torch.zeros(len(images)))
        model, callbacks = pythae_model(network), [StepDone()]
        BaseTrainer(model, data, training_config=settings, callbacks=callbacks).train()


def train_py_on_every_core(*case: Any) -> None:
    from vae_lab.threads import cores

    train_py(*case, f"threads={cores()}")


CONTENDERS: dict[str, Callable[[str, int, Done], None]] = {
    "train.py": train_py,
    "by hand": by_hand,
    "train.py, compiled": lambda *case: train_py(*case, "compile=true"),
    "by hand, compiled": lambda *case: by_hand(*case, compiled=True),
    "by hand, Adam not fused": lambda *case: by_hand(*case, fused=False),
    "by hand, our layers": lambda *case: by_hand(*case, ours=True),
    "Lightning and a DataLoader": plain_lightning,
    "pythae": pythae,
    "train.py, one thread": lambda *case: train_py(*case, "threads=1"),
    "train.py, every core": train_py_on_every_core,
    "train.py, everything on": lambda *case: train_py(*case, "callbacks.pictures.every_n_epochs=1"),
    "train.py, all off": lambda *case: train_py(*case, bare=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS | photo_contenders.CONTENDERS)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    network, size = CASES[asked.case]
    done = blocks(asked.steps, asked.seconds)
    if network == "grid":
        photo_contenders.CONTENDERS[asked.name](size, done)
    else:
        CONTENDERS[asked.name](network, size, done)


if __name__ == "__main__":
    main()
