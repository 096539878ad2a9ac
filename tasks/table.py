"""The tasks that train.py can be asked to do, by the names in `TASKS`."""

from contextlib import ExitStack
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from commandline.refusals import check_ranges
from vae_lab.storage.runs import default_folder

from .fit import fit
from .machine import check_devices, decide_threads
from .names import data_name
from .show import say
from .small import export, shards, test
from .trained import load_run


def evaluate(config: DictConfig) -> None:
    """All that can be measured of one or several models; see :mod:`tasks.evaluate`."""
    from . import evaluate

    check_ranges(config)
    check_devices(config)
    evaluate.run(config)


def compare(config: DictConfig) -> None:
    """Bias, variance and cost of several estimators' gradients; see :mod:`tasks.compare`."""
    from . import compare

    check_ranges(config)
    check_devices(config)
    with ExitStack() as held:
        folder = config.run_dir
        if folder is None:
            choices = HydraConfig.get().runtime.choices
            made = default_folder(f"compare-{choices.model}", data_name(config))
            folder = held.enter_context(made)
        model = None
        if config.checkpoint is not None:
            found = load_run(config)
            config, model = found.config, found.model
        decide_threads(config, {}, False)  # for all of them alike
        compare.run(config, Path(folder), fit, model)


def prior(config: DictConfig) -> float:
    """A prior for a model that is trained already; see :mod:`tasks.prior`."""
    from . import prior

    return prior.run(config)


def report(config: DictConfig) -> None:
    """The pictures and `report.html` made anew; of several models, beside each other."""
    from . import report

    check_ranges(config)
    check_devices(config)
    say(f"report   {report.run(config)}")


def explore(config: DictConfig) -> None:
    """A page in the browser to edit the model's z on; see :mod:`tasks.explore`."""
    from . import explore

    explore.run(config)


def sample(config: DictConfig) -> None:
    """Draws of a model, as a picture or a file; see :mod:`tasks.sample`."""
    from . import sample

    sample.run(config)


def encode(config: DictConfig) -> None:
    """Data as latent variables in a file; see :mod:`tasks.convert`."""
    from . import convert

    convert.encode(config)


def decode(config: DictConfig) -> None:
    """Such a file as data; see :mod:`tasks.convert`."""
    from . import convert

    convert.decode(config)


def impute(config: DictConfig) -> None:
    """A file with its missing values filled; see :mod:`tasks.convert`."""
    from . import convert

    convert.impute(config)


TASKS = {
    "fit": fit,
    "prior": prior,
    "test": test,
    "evaluate": evaluate,
    "sample": sample,
    "export": export,
    "compare": compare,
    "shards": shards,
    "report": report,
    "explore": explore,
    "encode": encode,
    "decode": decode,
    "impute": impute,
}
