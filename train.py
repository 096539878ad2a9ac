"""Trains, tests or samples a VAE.

python train.py model=gumbel_vae data=fashion_mnist
python train.py task=test checkpoint=runs/NAME
"""

import logging
import os
import signal
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
    ".*add the following callbacks.*ModelCheckpoint.*",  # version 0.1.0's
    ".*WeightAveraging callback with a model that overrides.*",  # sharding with it is refused
    ".*returned a view tensor.*",  # FSDP's; nothing is changed in place
    ".*sync_dist=True.*",  # the metrics are sums over all processes already
)


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float | None:
    from configs.errors import explain
    from configs.tasks import TASKS

    _quiet()
    exit_code = 1
    try:
        result = TASKS[config.task](config)
        exit_code = 0
        return result
    except KeyboardInterrupt:  # while training it saves first, and says so
        print("train.py: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        line = explain(error, config)
        if line is None or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        if line:
            print(f"train.py: {line}", file=sys.stderr)
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
    warnings.formatwarning = lambda message, kind, *_, **__: f"{kind.__name__}: {message}\n"


if __name__ == "__main__":
    exit_on_mistake(sys.argv[1:])
    main()
