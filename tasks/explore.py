"""task=explore: a page in the browser on which a trained model's z is edited."""

from contextlib import closing

from omegaconf import DictConfig
from torch import Tensor

from commandline.refusals import check_ranges
from vae_lab.evaluation.measurement import collect
from vae_lab.inputs import is_picture

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
    if not is_picture(found.vae.shape):
        raise ValueError(
            f"task=explore shows images, and the data of {found.typed} has the shape "
            f"{list(found.vae.shape)}: type task=evaluate or task=report"
        )
    (images, y), data = _test_images(found, config.explore.images), found.datamodule
    explorer = Explorer(found.vae, images, data.binarize, data.pixels, y)
    serve(explorer, found.name, config.explore.port)


def _test_images(found: Trained, count: int) -> tuple[Tensor, Tensor]:
    """The first of the test split, [count, C, H, W], and their labels."""
    found.datamodule.prepare_data()
    found.datamodule.setup()
    with closing(found.datamodule.test_dataloader()) as loader:
        return collect(loader, count)
