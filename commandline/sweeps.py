"""Decides how a sweep goes on after a job has failed."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict


class JobFailed(Exception):
    """The job has said why. Hydra goes on with the next one, as it would not after SystemExit."""


class FailedJobs(Callback):
    """Ends the sweep with exit code 2 and without a traceback, when all of its jobs have run.

    A sweeper that chooses, Optuna's, learns nothing from a job that failed. It goes on as long as
    no more than `hydra.sweeper.max_failure_rate` of all its trials have, and one has not. Jobs of
    another launcher run in other processes, and are counted when all of their batch have ended.
    """

    def __init__(self) -> None:
        self.rate: float | None = None  # of a sweeper that chooses, in its own process
        self.trials = self.failed = 0
        self.logs = ""  # where jobs write that run in other processes

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        sweeper, launcher = config.hydra.sweeper, config.hydra.launcher
        if "max_failure_rate" in sweeper:
            self.rate, self.trials = sweeper.max_failure_rate, sweeper.n_trials
            with open_dict(sweeper):
                sweeper.max_failure_rate = 1.0  # its own is over a batch: with one job, all or none
            logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
            if not launcher._target_.endswith("BasicLauncher"):
                self.logs = config.hydra.sweep.dir
                self._count_batches(Plugins.instance().class_name_to_class[launcher._target_])

    def _count_batches(self, launcher: type[Any]) -> None:
        """Makes the launcher count failed jobs after every batch; Hydra calls nothing in between.

        The class itself is changed: a process has one launcher.
        """
        launch = launcher.launch

        def counted(*arguments: Any, **named: Any) -> Sequence[JobReturn]:
            returns = launch(*arguments, **named)
            for job_return in returns:
                if isinstance(job_return._return_value, JobFailed):
                    self._count(job_return)
            return returns

        launcher.launch = counted

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if not isinstance(job_return._return_value, JobFailed):
            return
        if self.rate is not None and not self.logs:  # a job elsewhere has a copy of this
            self._count(job_return)
        elif "max_failure_rate" not in config.hydra.sweeper:
            job_return.return_value = SystemExit(*job_return._return_value.args)

    def _count(self, job_return: JobReturn) -> None:
        """Ends the sweep, or leaves a trial without a value."""
        self.failed += 1
        if self.failed > self.rate * self.trials or self.failed == self.trials:
            if self.rate or self.logs:
                said = f"{self.failed} of {self.trials} trials failed"
                where = f", and said why in the launcher's files in {self.logs}" * bool(self.logs)
                print(f"train.py: the sweep ends: {said}{where}", file=sys.stderr)
            raise SystemExit(2)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None
