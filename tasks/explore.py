"""task=explore: a page in the browser on which a trained model's z is edited."""

from contextlib import closing

from omegaconf import DictConfig
from torch import Tensor

from commandline.refusals import check_ranges
from vae_lab.evaluation.measurement import collect

from .machine import check_devices
from .trained import Trained, trained


def run(config: DictConfig) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        ImportError: the library of the page is not installed.
        ValueError: a setting below `explore` is out of range.
    """
    from vae_lab.explorer.edits import Explorer
    from vae_lab.explorer.page import serve

    check_ranges(config)
    check_devices(config)
    found = trained(config)
    (x, y), data = _test_data(found, config.explore.images), found.datamodule
    explorer = Explorer(found.vae, x, data.binarize, data.pixels, y)
    serve(explorer, found.name, config.explore.port)


def _test_data(found: Trained, count: int) -> tuple[Tensor, Tensor]:
    """The first of the test split, [count, *X], and their labels."""
    found.datamodule.prepare_data()
    found.datamodule.setup()
    with closing(found.datamodule.test_dataloader()) as loader:
        return collect(loader, count)
