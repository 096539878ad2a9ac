"""How long a training will take, measured before it begins."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from models.base import VAEModule
from vae_lab.gradients import evaluating

LEAST = 60  # seconds of training, below which nobody waits
TIMED = 2  # steps, of which the faster one counts


def told(model: VAEModule, x: Tensor, steps: float) -> Iterator[str]:
    """A line that says how long so many steps take, if that is more than a minute.

    Args:
        model: on the CPU; nothing of it changes.
        x: one batch, [B, *X].
        steps: batches of the whole training; of no end there is nothing to say.
    """
    if not math.isfinite(steps):
        return
    seconds = seconds_of_a_step(model, x)
    if seconds * steps > LEAST:
        threads = torch.get_num_threads()
        yield (
            f"about {_spoken(seconds * steps)}: {steps:.0f} batches of {len(x)}, "
            f"{1000 * seconds:.0f} ms each on {threads} thread{'s' * (threads > 1)}"
        )


def seconds_of_a_step(model: VAEModule, x: Tensor) -> float:
    """The time of the objective and its gradient, after which all is as before."""
    found = []
    with evaluating(model), torch.random.fork_rng(devices=[]):  # leaves moving averages alone
        for _ in range(TIMED):
            began = time.perf_counter()
            terms = model.objective(model.vae.blank(len(x)), model.estimator, x)
            terms.objective.mean().backward()
            found.append(time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return min(found)


def _spoken(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{seconds:.0f} seconds"
    return f"{minutes / 60:.1f} hours"
