"""The optimizer of a training: its groups of parameters, its learning rate, and its gradients."""

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.schedules import Constant, Cosine, Linear, Schedule


def parameter_groups(
    trained: Iterable[nn.Module], apart: Iterable[tuple[nn.Module, float | None]]
) -> list[dict[str, Any]]:
    """The parameters of the modules that are trained, in groups of one learning rate each.

    Args:
        trained: the modules with the optimizer's rate, but for what is set apart.
        apart: modules that are groups of their own, and their rates; None: the optimizer's.
    """
    groups: list[dict[str, Any]] = []
    for module, rate in apart:
        if own := list(module.parameters()):
            # Decay would pull a scale or a control variate's weight to 0, and a temperature to 1.
            lr = {} if rate is None else {"lr": rate}
            groups.append({"params": own, "weight_decay": 0.0, **lr})
    others = {id(p) for group in groups for p in group["params"]}
    model = [p for module in trained for p in module.parameters() if p.requires_grad]
    return [{"params": [p for p in model if id(p) not in others]}, *groups]


def check_learning_rate(warmup_steps: int, decay: str) -> None:
    if warmup_steps < 0:
        raise ValueError(f"lr_warmup_steps must not be negative, got {warmup_steps}")
    if decay not in ("none", "cosine"):
        raise ValueError(f"lr_decay must be none or cosine, got {decay!r}")


def scheduled(
    optimizer: Optimizer, warmup_steps: int, decay: str, trainer: pl.Trainer
) -> dict[str, Any]:
    """The optimizer with a learning rate that moves at every step, as Lightning wants them."""
    factor = rate_factor(warmup_steps, decay, lambda: trainer.estimated_stepping_batches)
    scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def rate_factor(
    warmup_steps: int, decay: str, all_steps: Callable[[], float]
) -> Callable[[int], float]:
    """The factor on the learning rate, as a function of the step.

    Args:
        warmup_steps: so many steps it rises linearly, and is 1 in the last of them.
        decay: then it stays there ("none"), or falls to 0 at the end of training ("cosine").
        all_steps: the steps of the whole training, infinite where nobody knows; asked for when the
            decay begins, as that loads the data.
    """
    rise = Linear(0.0, 1.0, max(warmup_steps, 1))

    @cache
    def fall() -> Schedule:
        steps = all_steps() if decay == "cosine" else math.inf
        if not math.isfinite(steps):
            return Constant(1.0)
        return Cosine(1.0, 0.0, max(int(steps) - warmup_steps, 1))

    def factor(step: int) -> float:
        return rise.at(step + 1) if step < warmup_steps else fall().at(step - warmup_steps)

    return factor


def take_settings(trainer: pl.Trainer, fresh: Optimizer) -> None:
    """Gives the trainer's optimizer the settings of a fresh one.

    Those are the config's; the state that was loaded may have brought others.
    """
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    scheduler.base_lrs = [group["lr"] for group in fresh.param_groups]
    [factor, *_] = scheduler.lr_lambdas
    groups = zip(trainer.optimizers[0].param_groups, fresh.param_groups, strict=True)
    for group, new in groups:
        settings = {name: value for name, value in new.items() if name != "params"}
        rate = new["lr"] * factor(scheduler.last_epoch)
        group |= settings | {"initial_lr": new["lr"], "lr": rate}


def clip(optimizer: Optimizer, value: float | None, algorithm: str | None) -> None:
    """Limits the gradients' norm, or each of their values ("value").

    Lightning's own way would refuse a fused optimizer in bfloat16 too, where there is no
    GradScaler, and fail where a step that is left out has no gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = [p for p in parameters if p.grad is not None]
    if value and found:
        limit = clip_grad_value_ if algorithm == "value" else clip_grad_norm_
        limit(found, value)
