"""What becomes of a sweep of which a job fails."""

import logging
import sys
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict


class JobFailed(Exception):
    """The job has said why. Hydra goes on with the next one, as it would not after SystemExit."""


class FailedJobs(Callback):
    """Ends the sweep with exit code 2 and without a traceback, when all of its jobs have run.

    A sweeper that chooses, Optuna's, learns nothing from a job that failed. It goes on as long as
    no more than `hydra.sweeper.max_failure_rate` of all its trials have, and one has not. Where the
    jobs run in other processes, by another launcher, it counts over each batch of `n_jobs` itself.
    """

    def __init__(self) -> None:
        self.rate: float | None = None  # of a sweeper that chooses, in the process of its jobs
        self.trials = self.failed = 0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        sweeper, launcher = config.hydra.sweeper, config.hydra.launcher
        if "max_failure_rate" in sweeper and launcher._target_.endswith("BasicLauncher"):
            self.rate, self.trials = sweeper.max_failure_rate, sweeper.n_trials
            with open_dict(sweeper):
                sweeper.max_failure_rate = 1.0  # its own is over a batch: with one job, all or none
            logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if not isinstance(job_return._return_value, JobFailed):
            return
        if self.rate is not None:
            self._count(job_return)
        elif not OmegaConf.select(config, "hydra.sweeper.max_failure_rate"):
            job_return.return_value = SystemExit(*job_return._return_value.args)

    def _count(self, job_return: JobReturn) -> None:
        """Ends the sweep, or leaves a trial without a value."""
        self.failed += 1
        if self.failed > self.rate * self.trials or self.failed == self.trials:
            if self.rate:
                said = f"{self.failed} of {self.trials} trials failed"
                print(f"train.py: the sweep ends: {said}", file=sys.stderr)
            raise SystemExit(2)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None
