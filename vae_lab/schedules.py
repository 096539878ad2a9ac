"""Schedules: numbers that are functions of the global step, and so resume exactly.

A schedule is a module holding its present value in a 0-dimensional buffer. The training loop calls
:meth:`Schedule.set_step` once a step; estimators and objectives read ``schedule.value``. A tensor
and not a float, so that a changing value neither recompiles a compiled step nor syncs the device.
"""

import math
from bisect import bisect_right
from itertools import accumulate

import torch
from torch import Tensor, nn

from .arguments import PrintsArguments


class Schedule(PrintsArguments, nn.Module):
    """A number that depends on the step; subclasses implement :meth:`at`.

    Attributes:
        value: the number at the step last set, shape [].
        steps: the step from which on the value no longer changes.
    """

    value: Tensor
    steps: int = 0

    def __init__(self) -> None:
        super().__init__()
        # Not persistent: a function of the step is recomputed, never restored.
        self.register_buffer("value", torch.tensor(float(self.at(0))), persistent=False)

    def at(self, step: int) -> float:
        raise NotImplementedError

    def set_step(self, step: int) -> None:
        self.value.fill_(self.at(step))


class Constant(Schedule):
    """The same value at every step."""

    def __init__(self, constant: float) -> None:
        self.constant = constant
        super().__init__()

    def at(self, step: int) -> float:
        return self.constant

    def set_step(self, step: int) -> None:
        """Nothing to do."""

    def as_argument(self) -> str:
        return repr(self.constant)


class _Ramp(Schedule):
    """A value that goes from `start` to `end` and then stays there.

    Args:
        start: the value at step 0.
        end: the value from `steps` on.
        steps: how many steps of the optimizer it takes.
    """

    def __init__(self, start: float, end: float, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.start, self.end, self.steps = start, end, steps
        super().__init__()

    def fraction(self, step: int) -> float:
        return min(step / self.steps, 1.0)


class Linear(_Ramp):
    r""":math:`v(t) = s + (e - s) \min(t / T, 1)`, from `start` to `end` in `steps` steps."""

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * self.fraction(step)


class Cosine(_Ramp):
    r""":math:`v(t) = e + (s - e) \tfrac{1}{2} (1 + \cos(\pi \min(t / T, 1)))`."""

    def at(self, step: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * self.fraction(step)))
        return self.end + (self.start - self.end) * wave


class Exponential(_Ramp):
    r""":math:`v(t) = s \, (e / s)^{\min(t / T, 1)}`; both ends positive."""

    def __init__(self, start: float, end: float, steps: int) -> None:
        if start <= 0 or end <= 0:
            raise ValueError(f"start and end must be positive, got {start} and {end}")
        super().__init__(start, end, steps)

    def at(self, step: int) -> float:
        return self.start * (self.end / self.start) ** self.fraction(step)


class Step(_Ramp):
    r""":math:`v(t) = s` before step T, and `end` from it on."""

    def at(self, step: int) -> float:
        return self.start if step < self.steps else self.end


class Staircase(Schedule):
    r"""A value that falls or rises in stages, by the same factor from each to the next.

    .. math:: v = s \, (e / s)^{i / (n - 1)} \quad \text{in stage } i = 0, \dots, n - 1

    Args:
        start: the value in the first stage.
        end: the value in the last one, which does not end.
        stages: n, how many there are.
        first_steps: how many steps of the optimizer the first stage takes.
        growth: how many times as many each other one takes as that before it.
    """

    def __init__(
        self, start: float, end: float, stages: int, first_steps: int, growth: int = 1
    ) -> None:
        if start <= 0 or end <= 0:
            raise ValueError(f"start and end must be positive, got {start} and {end}")
        if stages < 2:
            raise ValueError(f"stages must be at least 2, got {stages}")
        if first_steps < 1 or growth < 1:
            raise ValueError(
                f"first_steps and growth must be at least 1, got {first_steps} and {growth}"
            )
        self.start, self.end, self.stages = start, end, stages
        self.first_steps, self.growth = first_steps, growth
        lengths = (first_steps * growth**i for i in range(stages - 1))
        self.ends = [*accumulate(lengths)]  # of all stages but the last
        self.steps = self.ends[-1]
        super().__init__()

    def at(self, step: int) -> float:
        stage = bisect_right(self.ends, step)
        return self.start * (self.end / self.start) ** (stage / (self.stages - 1))


class Cyclical(Schedule):
    """A linear ramp from `start` to `end` that begins anew `cycles` times within `steps`.

    Each cycle rises for its first `rise` fraction and stays at `end` for the rest, as does all
    after the last cycle.

    Args:
        start: the value at the beginning of a cycle.
        end: the value at its end.
        steps: how many steps of the optimizer all cycles take together.
        cycles: how many.
        rise: the fraction of a cycle in which the value rises.

    Source: Fu et al., *Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing*,
    NAACL 2019, arXiv:1903.10145
    """

    def __init__(
        self, start: float, end: float, steps: int, cycles: int = 4, rise: float = 0.5
    ) -> None:
        if steps < cycles or cycles < 1:
            raise ValueError(f"steps must be at least cycles >= 1, got {steps} and {cycles}")
        if not 0 < rise <= 1:
            raise ValueError(f"rise must be in (0, 1], got {rise}")
        self.start, self.end, self.steps = start, end, steps
        self.cycles, self.rise = cycles, rise
        super().__init__()

    def at(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        phase = (step * self.cycles / self.steps) % 1.0
        return self.start + (self.end - self.start) * min(phase / self.rise, 1.0)


def as_schedule(value: float | Schedule) -> Schedule:
    return value if isinstance(value, Schedule) else Constant(float(value))


def bounds(schedule: Schedule) -> tuple[float, float]:
    """The smallest and largest of a schedule's end points."""
    ends = schedule.at(0), schedule.at(schedule.steps)
    return min(ends), max(ends)


def schedules(module: nn.Module) -> dict[str, Schedule]:
    """Every schedule inside a module by its last name: temperature, beta (all of it if taken)."""
    found: dict[str, Schedule] = {}
    for name, child in module.named_modules():
        if isinstance(child, Schedule):
            last = name.rpartition(".")[2]
            found[name if last in found else last] = child
    return found
