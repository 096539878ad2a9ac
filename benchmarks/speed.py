"""How fast train.py trains, beside loops that people write by hand and beside other frameworks.

python benchmarks/speed.py [--rounds 15] [--cases mlp-128 mlp-512 conv-128] [--out FILE.csv]

All train one network on Fashion-MNIST, in one process and in turn, twenty steps each, which is how
often train.py reads its metrics; medians over the rounds. Ratios are of images a second.
"""

import argparse
import csv
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turns import Train, Turn, race  # noqa: E402
from configs.tasks import fit  # noqa: E402
from datamodules.base import Images  # noqa: E402
from datamodules.fashion_mnist import FashionMNIST  # noqa: E402
from vae_lab.networks import MLP, Conv  # noqa: E402

STEPS = 20
LATENTS = 20


class Padded(FashionMNIST):
    """Two black pixels on each side: 32x32."""

    shape = (1, 32, 32)

    def load(self) -> Images:
        images = super().load()
        train, test = (F.pad(part, (2, 2, 2, 2)) for part in (images.train, images.test))
        return images._replace(train=train, test=test)


CASES = {
    "mlp-128": ("mlp", 128),
    "mlp-512": ("mlp", 512),
    "conv-128": ("conv", 128),
    "conv-512": ("conv", 512),
}
DATA = {"mlp": FashionMNIST, "conv": Padded}
NETWORKS = {"mlp": MLP([512]), "conv": Conv()}


class Net(nn.Module):
    """The VAE that one writes by hand: what train.py trains, and nothing else."""

    def __init__(self, network: str) -> None:
        super().__init__()
        recipe, shape = NETWORKS[network], DATA[network].shape
        self.encoder = recipe.encoder(shape)
        self.head = nn.Linear(self.encoder.features, 2 * LATENTS)
        self.decoder = recipe.decoder(LATENTS, shape)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var = self.head(self.encoder(x)).chunk(2, -1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        logits = self.decoder(z)
        error = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
        return (error + kl).mean()


def train_images(network: str) -> Tensor:
    data = DATA[network]()
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader().images


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    while True:
        for rows in torch.randperm(len(images)).split(size)[:-1]:
            yield images[rows].float().div_(255)


def by_hand(network: str, batch_size: int, compiled: bool = False, fused: bool = True) -> Train:
    def train(step_done: Callable[[], None]) -> None:
        net = Net(network)
        optimizer = torch.optim.AdamW(net.parameters(), fused=fused)
        loss = torch.compile(net) if compiled else net
        for x in batches(train_images(network), batch_size):
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()
            step_done()

    return train


def train_py(network: str, batch_size: int, *overrides: str) -> Train:
    """train.py as it is, but for the W&B logger, of which a process can have only one."""

    def train(_: Callable[[], None]) -> None:
        settings = ["model=gaussian_vae", "data=fashion_mnist", f"network={network}", "logger=csv"]
        settings += [f"data.batch_size={batch_size}", f"model.latents={LATENTS}"]
        if network == "mlp":
            settings.append("network.hidden=[512]")
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("train", [*settings, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config), tempfile.TemporaryDirectory() as folder:
            del config["hydra"]
            config.run_dir = f"{folder}/run"
            config.data._target_ = f"{DATA[network].__module__}.{DATA[network].__name__}"
            config.callbacks.turn = {"_target_": "benchmarks.turns.Turn"}
            fit(config)

    return train


def plain_lightning(network: str, batch_size: int) -> Train:
    """What the tutorials show: torchvision's transforms, a DataLoader, self.log."""

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(network)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.net(batch)
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    class Pictures(torch.utils.data.Dataset):
        def __init__(self) -> None:
            from torchvision.transforms import v2

            self.images = train_images(network).squeeze(1).numpy()
            to_float = v2.ToDtype(torch.float32, scale=True)
            self.transform = v2.Compose([v2.ToImage(), to_float])

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            from PIL import Image

            return self.transform(Image.fromarray(self.images[index]))

    def train(_: Callable[[], None]) -> None:
        loader = torch.utils.data.DataLoader(Pictures(), batch_size, shuffle=True, drop_last=True)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(max_epochs=100, callbacks=[Turn()], default_root_dir=folder)
            trainer.fit(Module(), loader)

    return train


def pythae(network: str, batch_size: int) -> Train:
    """pythae's VAE and trainer, with the same encoder and decoder."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            net = Net(network)
            self.trunk, self.head = net.encoder, net.head

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_var = self.head(self.trunk(x)).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Net(network).decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.trunk(z).sigmoid())

    def train(step_done: Callable[[], None]) -> None:
        class StepDone(TrainingCallback):
            def on_train_step_end(self, *_: Any, **__: Any) -> None:
                step_done()

        images = train_images(network).float().div(255)
        shape = DATA[network].shape
        settings = VAEConfig(input_dim=shape, latent_dim=LATENTS, reconstruction_loss="bce")
        with tempfile.TemporaryDirectory() as folder:
            BaseTrainer(
                VAE(settings, encoder=Encoder(), decoder=Decoder()),
                BaseDataset(images, torch.zeros(len(images))),
                training_config=BaseTrainerConfig(
                    output_dir=folder, per_device_train_batch_size=batch_size, num_epochs=100
                ),
                callbacks=[StepDone()],
            ).train()

    return train


def contestants(network: str, batch_size: int) -> dict[str, Train]:
    case = network, batch_size
    trains = {
        "train.py": train_py(*case),
        "by hand": by_hand(*case),
        "train.py, compiled": train_py(*case, "compile=true"),
        "by hand, compiled": by_hand(*case, compiled=True),
        "by hand, plain Adam": by_hand(*case, fused=False),
        "Lightning, DataLoader": plain_lightning(*case),
    }
    if find_spec("pythae"):
        trains["pythae"] = pythae(*case)
    return trains


REFERENCES = {
    "by hand": ("train.py", {"mlp-128": 0.9, "conv-128": 0.9, "mlp-512": 0.95, "conv-512": 0.95}),
    "by hand, compiled": ("train.py, compiled", {"mlp-128": 0.9, "mlp-512": 0.95}),
    "pythae": ("train.py", {"mlp-128": 1.55}),
    "Lightning, DataLoader": ("train.py", {"mlp-128": 2.5}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--only", nargs="+", help="of the contestants")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "speed.csv")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for case in asked.cases:
        trains = contestants(*CASES[case])
        if asked.only:
            trains = {name: trains[name] for name in asked.only}
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            seconds = race(trains, STEPS, asked.rounds)
        for name, taken in seconds.items():
            row = {"case": case, "what": name, "relative": seconds["by hand"] / taken}
            rows.append(row | {"images_per_second": CASES[case][1] / taken})
            print(f"{case:10} {name:24} {rows[-1]['relative']:.3f}", flush=True)
    with asked.out.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
