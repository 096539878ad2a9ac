"""The tasks that take a few lines: test, export and shards."""

from pathlib import Path

from omegaconf import DictConfig

from commandline.quoting import as_typed
from commandline.refusals import check_task
from vae_lab.data import Pixels
from vae_lab.storage.runs import writable

from . import build
from .show import say, table, tested
from .trained import load_run, load_vae


def test(config: DictConfig) -> float:
    """The test metrics of a run's best checkpoint. Returns the test ELBO."""
    found = load_run(config)
    trainer = build.trainer(found.config, found.model, fit=False)
    metrics = tested(trainer, found.model, found.datamodule)
    table(f"{found.typed}, test split", metrics)
    return metrics["test/elbo"]


def export(config: DictConfig) -> None:
    """The encoder and the decoder as ONNX graphs, in `run_dir` or else beside the model."""
    from vae_lab.export import check_packages, export_onnx

    check_packages()
    vae, folder = load_vae(config)
    exported = export_onnx(vae, folder / "onnx")
    written = ", ".join(map(str, exported.files))
    say(f"exported: {written}; at most {exported.difference:.0e} from torch, relatively")


def shards(config: DictConfig) -> None:
    """The images of `data` as shards in `run_dir`, for `data=streaming`."""
    from datamodules.streaming import write_shards

    check_task(config)
    writable(Path(config.run_dir))
    datamodule = build.make(config.data)
    if not isinstance(datamodule.prepare(), Pixels):
        raise ValueError("task=shards writes pictures that are stored as bytes: choose other data")
    datamodule.prepare_data()
    counts = write_shards(datamodule, Path(config.run_dir))
    say(f"shards   {config.run_dir}: {counts['train']} images in train/, {counts['test']} in test/")
    say(f"next     python train.py data=streaming {as_typed('data.root', config.run_dir)}")
