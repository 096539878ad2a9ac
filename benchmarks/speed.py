"""How fast train.py is, beside loops written by hand and beside other frameworks.

python benchmarks/speed.py [--rounds 15] [--parts training] [--cases mlp-128] [--out FILE.csv]

All train one network on Fashion-MNIST, in one process and in turn, twenty steps each, which is how
often train.py reads its metrics; medians over the rounds. What is written is a ratio of speeds.
`pip install pythae` adds pythae to those beside.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
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
from matplotlib.ticker import NullFormatter
from omegaconf import open_dict
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turns import Train, Turn, medians, race, write  # noqa: E402
from configs.tasks import fit  # noqa: E402
from datamodules.base import Images  # noqa: E402
from datamodules.fashion_mnist import FashionMNIST  # noqa: E402
from vae_lab import VAE, figures  # noqa: E402
from vae_lab.callbacks import StepSeed  # noqa: E402
from vae_lab.latents import Gaussian  # noqa: E402
from vae_lab.likelihoods import Bernoulli  # noqa: E402
from vae_lab.networks import MLP, Conv  # noqa: E402

STEPS = 20
LATENTS = 20


class Padded(FashionMNIST):
    """Two black pixels on each side: 32x32."""

    shape = (1, 32, 32)

    def load(self) -> Images:
        images = FashionMNIST(root=self.root, download=self.download).load()
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
            if network == "conv":
                config.data._target_ = "benchmarks.speed.Padded"
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
            # No progress bar: its thread would disturb the others.
            options = {"max_epochs": 100, "enable_progress_bar": False}
            trainer = pl.Trainer(**options, callbacks=[Turn()], default_root_dir=folder)
            trainer.fit(Module(), loader)

    return train


def pythae_model(network: str) -> Any:
    """pythae's VAE, with the same encoder and decoder."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

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

    shape = DATA[network].shape
    settings = VAEConfig(input_dim=shape, latent_dim=LATENTS, reconstruction_loss="bce")
    return VAE(settings, encoder=Encoder(), decoder=Decoder())


def pythae(network: str, batch_size: int) -> Train:
    """pythae's trainer, on images that it has in memory as floats."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    def train(step_done: Callable[[], None]) -> None:
        class StepDone(TrainingCallback):
            def on_train_step_end(self, *_: Any, **__: Any) -> None:
                step_done()

        images = train_images(network).float().div(255)
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                output_dir=folder, per_device_train_batch_size=batch_size, num_epochs=100
            )
            data = BaseDataset(images, torch.zeros(len(images)))
            model, callbacks = pythae_model(network), [StepDone()]
            BaseTrainer(model, data, training_config=settings, callbacks=callbacks).train()

    return train


def everything(network: str, batch_size: int) -> Train:
    """With pictures at every validation."""
    return train_py(network, batch_size, "callbacks.pictures.every_n_epochs=1")


def nothing(network: str, batch_size: int) -> Train:
    """Without loggers, pictures, checkpoints, progress bar and warnings; validation goes on."""
    bare = "callbacks.pictures._target_=benchmarks.speed.Bare"
    return train_py(network, batch_size, bare, "trainer.enable_progress_bar=false")


class Bare(pl.Callback):
    """Ends all other callbacks but the noise's seeds, and the turn's."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        trainer.callbacks = [c for c in trainer.callbacks if isinstance(c, StepSeed | Turn)]
        trainer.loggers = []


def training(case: str, rounds: int, only: list[str] | None = None) -> dict[str, float]:
    """Seconds of a step."""
    settings = CASES[case]
    trains = {
        "train.py": train_py(*settings),
        "train.py, compiled": train_py(*settings, "compile=true"),
        "by hand": by_hand(*settings),
        "by hand, compiled": by_hand(*settings, compiled=True),
        "by hand, Adam not fused": by_hand(*settings, fused=False),
        "Lightning and a DataLoader": plain_lightning(*settings),
    }
    if find_spec("pythae"):
        trains["pythae"] = pythae(*settings)
    return race({k: v for k, v in trains.items() if not only or k in only}, STEPS, rounds)


def extras(rounds: int) -> dict[str, float]:
    """Seconds of a step, whole epochs with their validation counted in."""
    trains = {"train.py, everything on": everything("mlp", 128), "all off": nothing("mlp", 128)}
    return race(trains, math.ceil(50_000 / 128), rounds, warm=1)


def likelihood(rounds: int) -> dict[str, float]:
    """Seconds of the bound with 200 samples on log p(x) of 100 images, of one model."""
    vae = VAE((1, 28, 28), NETWORKS["mlp"], Gaussian(LATENTS), Bernoulli()).eval()
    x = torch.rand(100, 1, 28, 28).round()

    @torch.no_grad()
    def loop() -> None:
        for image in x.split(1):
            q, prior = vae.encode(image), vae.latent.prior()
            z = q.sample((200,))
            log_w = vae.log_px_z(image, z) + prior.log_prob(z) - q.log_prob(z)
            log_w.logsumexp(0)

    runs = {"log_likelihood": lambda: vae.log_likelihood(x, 200), "a loop over the images": loop}
    if find_spec("pythae"):
        peer = pythae_model("mlp")
        # It estimates one image after the other, in batches of samples.
        runs["pythae's get_nll"] = lambda: peer.get_nll(x, n_samples=200, batch_size=200)
    return medians(runs, rounds)


FIRST_STEP = """
import os, runpy, sys
sys.path.insert(0, {root!r})
from models.base import VAEModule
VAEModule.on_train_batch_end = lambda *_: os._exit(0)
sys.argv = ["train.py", "logger=csv", "run_dir={folder}/run"]
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def startup(rounds: int) -> dict[str, float]:
    """Seconds of whole processes."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, code in {
                "import torch": "import torch",
                "import vae_lab": "import torch, vae_lab",
                "import torch and Lightning": "import torch, pytorch_lightning",
                "train.py to the first step": FIRST_STEP.format(root=str(ROOT), folder=folder),
            }.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


PEAK = """
import re, runpy, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import configs.tasks, hydra, pytorch_lightning, wandb
from models.base import VAEModule
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before, start = peak(), VAEModule.on_validation_start
def report(self):
    print("PEAK", peak() - before, sum(p.numel() for p in self.parameters()))
    start(self)
VAEModule.on_validation_start = report
sys.argv = ["train.py", "model=gaussian_vae", "data=fashion_mnist", "logger=csv"]
sys.argv += ["trainer.max_epochs=1", "run_dir={folder}/run", "data.batch_size=512"]
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def memory() -> tuple[float, float]:
    """MiB that training takes at its peak, and that of the data, 4 times the weights, and the
    activations: the values of every layer of a batch, once forward and once backward."""
    with tempfile.TemporaryDirectory() as folder:
        code = PEAK.format(root=str(ROOT), folder=folder)
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    _, kib, parameters = next(line for line in out.splitlines() if "PEAK" in line).split()
    layers = 784 + 512 + 256 + 2 * 20 + 20 + 256 + 512 + 784
    budget = 70_000 * 784 + 4 * 4 * int(parameters) + 2 * 4 * 512 * layers
    return int(kib) / 2**10, budget / 2**20


TARGETS = {  # (of what, beside what): least ratio of the speeds
    ("train.py", "by hand"): {"mlp-128": 0.9, "mlp-512": 0.95, "conv-128": 0.9, "conv-512": 0.95},
    ("train.py, compiled", "by hand, compiled"): {"mlp-128": 0.9, "mlp-512": 0.95},
    ("train.py", "pythae"): {"mlp-128": 1.55},
    ("train.py", "Lightning and a DataLoader"): {"mlp-128": 2.5},
    ("train.py", "by hand, Adam not fused"): {},
    ("train.py, everything on", "all off"): {"mlp-128": 0.97},
    ("log_likelihood", "pythae's get_nll"): {"mlp": 4},
    ("log_likelihood", "a loop over the images"): {},
}


def compared(case: str, seconds: dict[str, float]) -> Iterator[dict[str, Any]]:
    for (what, beside), targets in TARGETS.items():
        if what in seconds and beside in seconds:
            speed = round(seconds[beside] / seconds[what], 3)
            row = {"case": case, "what": what, "beside": beside, "speed": speed}
            yield row | {"target": targets.get(case)}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One bar a comparison, with a line where it is to reach."""
    figure, (axes,) = figures.panels(1)
    figure.set_size_inches(8, 0.3 * len(rows) + 1)
    for place, row in enumerate(reversed(rows)):
        axes.barh(place, row["speed"], color=figures.COLOURS[0], height=0.7)
        if row["target"]:
            ends = [place - 0.45, place + 0.45]
            axes.plot([row["target"]] * 2, ends, color=figures.COLOURS[1], linewidth=2)
    names = [f"{row['case']}: {row['what']} / {row['beside']}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xscale="log", xlabel="speed, as a ratio; the target in orange")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks := [0.5, 1, 2, 4], map(str, ticks))
    axes.axvline(1, color="grey", lw=0.8, zorder=0)
    figures.write(figure, path)


PARTS = ("training", "extras", "likelihood", "startup", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--only", nargs="+", help="of those that train")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "speed.csv")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []

    def add(*new: dict[str, Any]) -> None:
        for row in new:
            rows.append(row)
            target = f"(target {row['target']})" if row["target"] else ""
            print(f"{row['case']:10} {row['what']} / {row['beside']}: {row['speed']} {target}")
            sys.stdout.flush()

    if "training" in asked.parts:
        for case in asked.cases:
            add(*compared(case, _quiet(training, case, asked.rounds, asked.only)))
    if "extras" in asked.parts:
        add(*compared("mlp-128", _quiet(extras, 5)))
    if "likelihood" in asked.parts:
        add(*compared("mlp", _quiet(likelihood, asked.rounds)))
    if "startup" in asked.parts:
        seconds = startup(5)
        torch_only, with_us = seconds["import torch"], seconds["import vae_lab"]
        row = {"case": "digits", "what": "import torch, vae_lab", "beside": "import torch"}
        add(row | {"speed": round(torch_only / with_us, 3), "target": None})
        print(f"{'':10} import vae_lab: {with_us - torch_only:.2f} s beyond torch (target 0.3)")
        ratio = seconds["import torch and Lightning"] / seconds["train.py to the first step"]
        row = {"case": "digits", "what": "train.py to its first step", "beside": "bare imports"}
        add(row | {"speed": round(ratio, 3), "target": round(1 / 1.5, 3)})
    if "memory" in asked.parts:
        peak, budget = memory()
        row = {"case": "mlp-512", "what": "memory of the budget", "beside": "at the peak"}
        add(row | {"speed": round(budget / peak, 3), "target": 1})
        print(f"{'':10} {peak:.0f} MiB at the peak, {budget:.0f} MiB in the budget")
    write(rows, asked.out)
    draw(rows, asked.out.with_name("images") / f"{asked.out.stem}.png")


def _quiet(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function whose output nobody wants to see."""
    with Path(os.devnull).open("w") as nowhere:
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            return function(*arguments)


if __name__ == "__main__":
    main()
