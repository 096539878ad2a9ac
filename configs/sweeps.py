"""What becomes of a sweep of which a job fails."""

from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


class JobFailed(Exception):
    """The job has said why. Hydra goes on with the next one, as it would not after SystemExit."""


class FailedJobs(Callback):
    """Ends the sweep with exit code 2 and without a traceback, when all of its jobs have run.

    A sweeper that chooses, Optuna's, cannot go on without a result: it ends at the job, or with
    `hydra.sweeper.max_failure_rate` when more than that part of them have failed.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        tolerated = OmegaConf.select(config, "hydra.sweeper.max_failure_rate")
        if isinstance(job_return._return_value, JobFailed) and not tolerated:
            job_return.return_value = SystemExit(*job_return._return_value.args)
