"""A training that can stop after any step, and go on bit for bit as if it had not."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..averaging import MovingAverage
from ..data import Batch, Loader, TensorLoader
from ..estimators import Estimator
from ..inputs import check_count
from ..objectives import Objective
from ..optimization import (
    Decay,
    check_learning_rate,
    clip,
    label_weight,
    loss,
    parameter_groups,
    rate_factor,
    terms_of,
)
from ..schedules import schedules
from ..seeding import seed_step
from ..vae import VAE

LOOK_EVERY = 20  # steps: a look at the terms waits for the device


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a training, by the names that they have at :func:`vae_lab.fit`."""

    epochs: int
    seed: int
    lr: float
    weight_decay: float
    lr_warmup_steps: int
    lr_decay: Decay
    likelihood_lr: float | None
    estimator_lr: float | None
    gradient_clip_val: float | None
    ema: float | None
    patience: int | None
    label_weight: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            if isinstance(value, np.generic):  # a file has plain numbers
                object.__setattr__(self, name, value.item())
        if not isinstance(self.seed, Integral) or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer of 64 bits, got {self.seed!r}")
        for name in ("epochs", "patience"):
            if (count := getattr(self, name)) is not None:
                check_count(name, count)
        for name in ("lr", "likelihood_lr", "estimator_lr", "gradient_clip_val"):
            value = getattr(self, name)
            left_open = value is None and name != "lr"
            if not left_open and not _is_between(0, value, math.inf):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if self.ema is not None and not _is_between(0, self.ema, 1):
            raise ValueError(f"ema must be a decay between 0 and 1, as 0.999, got {self.ema!r}")
        for name in ("weight_decay", "lr_warmup_steps"):
            value = getattr(self, name)
            if value != 0 and not _is_between(0, value, math.inf):
                raise ValueError(f"{name} must be a number that is not negative, got {value!r}")
        check_learning_rate(self.lr_warmup_steps, self.lr_decay)


def _is_between(low: float, value: Any, high: float) -> bool:
    return isinstance(value, Real) and low < float(value) < high


@dataclass
class Position:
    """How far a training is. Plain numbers: it is saved as it is."""

    epoch: int = 0
    batch: int = 0  # of the epoch, that were trained on
    step: int = 0
    best: float = -math.inf  # the highest val/elbo
    score: float = -math.inf  # the highest since the KL has its whole weight
    waited: int = 0  # validations since that one
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """The loop of :func:`vae_lab.fit`: the steps of train.py, without Lightning.

    The order of the data, the noise, the learning rate and all schedules are functions of the seed
    and the step. So the state is weights, averages and a :class:`Position`.

    Args:
        train: the batches of an epoch.
        val: those of a validation, which follows each epoch; None: there is none, and the last
            weights count instead of the best.
        plan: all numbers.
    """

    def __init__(
        self,
        vae: VAE,
        objective: Objective,
        estimator: Estimator,
        train: TensorLoader,
        val: Loader | None,
        plan: Plan,
    ) -> None:
        self.vae, self.objective, self.estimator = vae, objective, estimator
        self.train, self.val, self.plan = train, val, plan
        self._label_weight = label_weight(plan.label_weight, train.labelled)
        groups = parameter_groups(
            vae,
            objective,
            estimator,
            estimator_lr=plan.estimator_lr,
            likelihood_lr=plan.likelihood_lr,
        )
        self.optimizer = AdamW(groups, plan.lr, weight_decay=plan.weight_decay, fused=True)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        steps = plan.epochs * len(train)
        self._factor = rate_factor(plan.lr_warmup_steps, plan.lr_decay, lambda: steps)
        found = schedules(nn.ModuleList([vae, objective, estimator]))
        self._schedules = [*found.values()]
        self._warm_up = max((s.steps for name, s in found.items() if name == "beta"), default=0)
        self._average = None if plan.ema is None else MovingAverage(vae, plan.ema)
        self.at = Position()
        self._kept: dict[str, Tensor] | None = None  # the best weights
        self._sums = torch.zeros(3, dtype=torch.float64, device=vae.device)  # of this epoch

    @property
    def finished(self) -> bool:
        patience = self.plan.patience
        stopped = patience is not None and self.at.waited >= patience
        return stopped or self.at.epoch >= self.plan.epochs

    def run(self, pause: Callable[["Training"], bool]) -> None:
        """Trains to the end; or until `pause`, which is asked after every step, says so."""
        while not self.finished:
            if self._epoch(pause):
                return
            self._validate()
            if pause(self):
                return

    def _epoch(self, pause: Callable[["Training"], bool]) -> bool:
        """The rest of an epoch; whether it was left before its end."""
        at = self.at
        self.train.start_at(at.epoch, at.batch)
        for batch in self.train:
            if at.batch == 0:
                self.vae.likelihood.check(batch.x)
            self._step(batch)
            if at.batch % LOOK_EVERY == 0 or at.batch == len(self.train):
                self.look()
            if at.batch < len(self.train) and pause(self):
                return True
        return False

    def _step(self, batch: Batch) -> None:
        at = self.at
        seed_step(self.plan.seed, "train", at.epoch, at.batch)
        for schedule in self._schedules:
            schedule.set_step(at.step)
        factor = self._factor(at.step)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        terms = terms_of(
            self.vae, self.objective, self.estimator, batch.x, batch.y, self._label_weight
        )
        self.optimizer.zero_grad()
        loss(terms, batch.size).backward()
        clip(self.optimizer, self.plan.gradient_clip_val)
        self.optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.vae)
        sums = torch.stack([terms.objective, terms.elbo]).detach().sum(1)
        self._sums[:2] += sums
        self._sums[2] += batch.size
        at.batch, at.step = at.batch + 1, at.step + 1

    def look(self) -> dict[str, float]:
        """The means of this epoch so far; refuses what is not finite."""
        objective, elbo, count = self._sums.tolist()
        means = {"train/elbo": elbo / count} if count else {}
        for name, value in {"train/objective": objective, "train/elbo": elbo}.items():
            self._check(name, value)
        return means

    def _check(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {self.at.step}, epoch {self.at.epoch}: try a lower lr "
                f"(it was {self.plan.lr:g}) or gradient_clip_val=1, and look for extreme values in "
                "the data"
            )

    @torch.no_grad()
    def _validate(self) -> None:
        """Ends an epoch: the true ELBO of the held-out data, and what follows from it."""
        at = self.at
        row = {"epoch": at.epoch, "step": at.step, **self.look()}
        if self.val is not None:
            row["val/elbo"] = self._held_out(self.val)
            self._judge(row["val/elbo"])
        at.history.append(row)
        self._sums.zero_()
        at.epoch, at.batch = at.epoch + 1, 0

    def _held_out(self, val: Loader) -> float:
        model = self.model.eval()
        total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
        for number, batch in enumerate(val):
            seed_step(self.plan.seed, "validation", 0, number)
            given = model.given(model.own_y(batch.y))
            total += given.elbo(batch.x, check=number == 0).elbo.sum()
            count += batch.size
        model.train()
        elbo = total.item() / count
        self._check("val/elbo", elbo)
        return elbo

    def _judge(self, elbo: float) -> None:
        at = self.at
        if elbo > at.best:
            at.best = elbo
            if self.objective.monitor is not None:
                self._kept = _copied(self.model)
        if at.step < self._warm_up or self.objective.monitor is None:
            return
        at.score, at.waited = (elbo, 0) if elbo > at.score else (at.score, at.waited + 1)

    @property
    def model(self) -> VAE:
        """The model that is measured: with averaged weights, if they are averaged."""
        return self.vae if self._average is None else cast(VAE, self._average.module)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The best so far; the last ones, where nothing is held out or nothing says which."""
        return _copied(self.model) if self._kept is None else self._kept

    @property
    def _stateful(self) -> list[Any]:
        return [self.vae, self.objective, self.estimator, self.optimizer]

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`run` needs to go on; in plain types."""
        average = None if self._average is None else self._average.state_dict()
        return {
            "parts": [part.state_dict() for part in self._stateful],
            "average": average,
            "kept": self._kept,
            "sums": self._sums,
            "position": vars(self.at),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self._stateful, state["parts"], strict=True):
            part.load_state_dict(saved)
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._kept = state["kept"]
        self._sums.copy_(state["sums"])
        self.at = Position(**state["position"])


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
