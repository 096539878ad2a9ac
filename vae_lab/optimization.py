"""A step of training: the loss, the groups of parameters, the learning rate, and the gradients.

The same for train.py, whose trainer is Lightning's, and for :func:`vae_lab.fit`.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from .conditions import InferredLabels
from .estimators import Estimator
from .objectives import Objective, Terms
from .schedules import Constant, Cosine, Linear, Schedule
from .vae import VAE

Decay = Literal["none", "cosine"] | Schedule  # of the learning rate
LABELLED_SHARE = 0.125  # of a batch, where labels are inferred


def rehearse(vae: VAE, objective: Objective, estimator: Estimator) -> None:
    """A step on blank data: what does not fit fails here, and lazy layers get their shape.

    No random state changes, nor a moving average.
    """
    parts = (vae, objective, estimator)
    for part in parts:
        part.eval()
    with torch.random.fork_rng(devices=[]):
        objective(vae.blank(2), estimator, torch.zeros(2, *vae.shape))
    for part in parts:
        part.train()


def terms_of(
    vae: VAE,
    objective: Objective,
    estimator: Estimator,
    x: Tensor,
    y: Tensor,
    label_weight: float = 0.0,
) -> Terms:
    r"""What is maximised of data x [B, \*X] and their labels or attributes y.

    Where labels are inferred, also log q(y|x) of those that are known, so that the classifier
    learns of them too.

    Args:
        label_weight: of that term; see :func:`label_weight`.

    Source: Kingma, Rezende, Mohamed & Welling 2014, arXiv:1406.5298, eq. 9
    """
    if vae.condition is None:
        return objective(vae, estimator, x)
    terms = objective(vae.given(y, first_only=True), estimator, x)
    if not isinstance(vae.condition, InferredLabels):
        return terms
    log_q = vae.condition.log_prob(vae.seen(x), y)
    return terms._replace(objective=terms.objective + label_weight * log_q)


def labelled_share(vae: VAE) -> float:
    """The share of a batch that has labels at least, in the training of this model."""
    return LABELLED_SHARE if vae.infers_labels else 0.0


def label_weight(weight: float, labelled: float) -> float:
    """The weight of a known label's log q(y|x): higher, the fewer of the data have one.

    Args:
        weight: of the mean over all known labels, beside the mean bound of all data.
        labelled: the share of the data of an epoch whose label is known.
    """
    return weight / labelled if labelled else 0.0


def loss(terms: Terms, size: int, processes: int = 1) -> Tensor:
    """The number to minimise, shape [].

    Args:
        terms: of this process's data.
        size: data in the batch of all processes, which may not have equally many.
        processes: how many there are, as DDP averages their gradients.
    """
    return terms.objective.sum() * (-processes / size)


def parameter_groups(
    vae: VAE,
    objective: Objective,
    estimator: Estimator,
    *,
    estimator_lr: float | None = None,
    likelihood_lr: float | None = None,
) -> list[dict[str, Any]]:
    """The parameters that are trained, in groups of one learning rate each.

    Args:
        estimator_lr: the rate of the estimator's own (baselines, control variates); None: the
            optimizer's.
        likelihood_lr: the rate of the likelihood's own, such as a learned sigma, which are then a
            group of their own; None: they are among the others.
    """
    apart: list[tuple[nn.Module, float | None]] = [(estimator, estimator_lr)]
    if likelihood_lr is not None:
        apart.append((vae.likelihood, likelihood_lr))
    groups = objective.parameter_groups()
    for module, rate in apart:
        if own := list(module.parameters()):
            # Decay would pull a scale or a control variate's weight to 0, and a temperature to 1.
            lr = {} if rate is None else {"lr": rate}
            groups.append({"params": own, "weight_decay": 0.0, **lr})
    others = {id(p) for group in groups for p in group["params"]}
    model = [p for module in (vae, objective) for p in module.parameters() if p.requires_grad]
    return [{"params": [p for p in model if id(p) not in others]}, *groups]


def check_learning_rate(warmup_steps: int, decay: Decay) -> None:
    if warmup_steps < 0:
        raise ValueError(f"lr_warmup_steps must not be negative, got {warmup_steps}")
    if not isinstance(decay, Schedule) and decay not in ("none", "cosine"):
        raise ValueError(f"lr_decay must be none or cosine, got {decay!r}")


def rate_factor(
    warmup_steps: int, decay: Decay, all_steps: Callable[[], float]
) -> Callable[[int], float]:
    """The factor on the learning rate, as a function of the step.

    Args:
        warmup_steps: so many steps it rises linearly, and is 1 in the last of them.
        decay: then it stays there ("none"), falls to 0 at the end of training ("cosine"), or is a
            schedule of the steps since.
        all_steps: the steps of the whole training, infinite where nobody knows; asked for when the
            decay begins, as that loads the data.
    """
    rise = Linear(0.0, 1.0, max(warmup_steps, 1))

    @cache
    def fall() -> Schedule:
        if isinstance(decay, Schedule):
            return decay
        steps = all_steps() if decay == "cosine" else math.inf
        if not math.isfinite(steps):
            return Constant(1.0)
        return Cosine(1.0, 0.0, max(int(steps) - warmup_steps, 1))

    def factor(step: int) -> float:
        return rise.at(step + 1) if step < warmup_steps else fall().at(step - warmup_steps)

    return factor


def clip(optimizer: Optimizer, value: float | None, algorithm: str | None = None) -> None:
    """Limits the gradients' norm, or each of their values ("value"); apart from them, the norm of
    each group that has a `max_norm` of its own.

    Lightning's own way would refuse a fused optimizer in bfloat16 too, where there is no
    GradScaler, and fail where a step that is left out has no gradients.
    """
    others: list[Tensor] = []
    for group in optimizer.param_groups:
        found = [p for p in group["params"] if p.grad is not None]
        if limit := group.get("max_norm"):
            clip_grad_norm_(found, limit)
        else:
            others += found
    if value and others:
        limit_all = clip_grad_value_ if algorithm == "value" else clip_grad_norm_
        limit_all(others, value)
