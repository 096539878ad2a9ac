"""Trains, tests or samples a VAE.

python train.py model=gumbel_vae data=fashion_mnist
python train.py task=test checkpoint=runs/NAME
"""

import logging
import os
import sys
import warnings

# Before torch is imported: threads that spin while they wait make a small model ten times slower
# as soon as anything else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from configs.command_line import exit_on_mistake  # noqa: E402

QUIET = (
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*not empty.*",
    ".*add the following callbacks.*WeightAveraging.*",  # it is not to average after training
    ".*WeightAveraging callback with a model that overrides.*",  # sharding with it is refused
    ".*returned a view tensor.*",  # FSDP's; nothing is changed in place
    ".*sync_dist=True.*",  # the metrics are sums over all processes already
)


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float | None:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from configs.tasks import TASKS

    _quiet()
    exit_code = 1
    try:
        result = TASKS[config.task](config)
        exit_code = 0
        return result
    except (ValueError, FileNotFoundError, MisconfigurationException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        if "wandb" in sys.modules:  # or the jobs of a sweep would be one W&B run
            sys.modules["wandb"].finish(exit_code)


def _quiet() -> None:
    """Leaves out what Lightning says that is not about this run."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    exit_on_mistake(sys.argv[1:])
    main()
