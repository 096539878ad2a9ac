"""Trains, tests or samples a VAE.

python train.py model=gumbel_vae data=fashion_mnist
python train.py task=test checkpoint=runs/NAME
"""

import logging
import os
import signal
import sys
import warnings

if sys.platform != "linux":  # where vae_lab/threads.py does not know the load
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")  # of another OpenMP than GNU's, which it does not adapt

INTERRUPTED = "train.py: interrupted"


def _leave(*_: object) -> None:
    """Ctrl-C while modules are imported, some of which would take it for an error of theirs."""
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from commandline.check import exit_on_mistake  # noqa: E402
from commandline.places import CONFIGS  # noqa: E402
from commandline.quoting import expand_home  # noqa: E402
from commandline.sweeps import JobFailed  # noqa: E402

QUIET = (
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*not empty.*",
    ".*add the following callbacks.*WeightAveraging.*",  # it is not to average after training
    ".*add the following callbacks.*Timer.*",  # of a time limit that was lifted
    ".*add the following callbacks.*ModelCheckpoint.*",  # version 0.1.0's
    ".*WeightAveraging callback with a model that overrides.*",  # sharding with it is refused
    ".*returned a view tensor.*",  # FSDP's; nothing is changed in place
    ".*Grad strides do not match.*",  # DDP's, of a layer with one output
    ".*The axis name.*will not be used.*",  # of an export: the batch of x is that of the labels
    ".*sync_dist=True.*",  # the metrics are sums over all processes already
)


@hydra.main(config_path=str(CONFIGS), config_name="train", version_base="1.3")
def main(config: DictConfig) -> float | None:
    from vae_lab.heap import keep_freed
    from vae_lab.threads import use, watched

    keep_freed()
    with watched():
        use(config.threads)
        return _run(config)


def _run(config: DictConfig) -> float | None:
    from commandline.errors import explain
    from tasks.table import TASKS
    from vae_lab.loggers import end

    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _quiet()
    exit_code = 1
    try:
        expand_home(config)
        result = TASKS[config.task](config)
        exit_code = 0
        return result
    except KeyboardInterrupt:  # while training it saves first, and says so
        print(INTERRUPTED, file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        line = explain(error, config)
        if line is None or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        if line:
            print(f"train.py: {line}", file=sys.stderr)
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        raise (JobFailed if in_sweep else SystemExit)(2) from None
    finally:
        end(exit_code)


def _quiet() -> None:
    """Leaves out what Lightning says that is not about this run."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = lambda message, kind, *_, **__: f"{kind.__name__}: {message}\n"


if __name__ == "__main__":
    # A cluster's jobs are started by another file, and need what lies beside this one.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.getenv("PYTHONPATH")]))
    sys.argv[1:] = exit_on_mistake(sys.argv[1:])
    main()
