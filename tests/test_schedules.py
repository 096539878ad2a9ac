"""Schedules are functions of the step, and so resume exactly."""

import math

import pytest
import torch
from torch import nn

from vae_lab.estimators import GumbelSoftmax
from vae_lab.objectives import ELBO
from vae_lab.schedules import (
    Constant,
    Cosine,
    Cyclical,
    Exponential,
    Linear,
    Staircase,
    Step,
    as_schedule,
    bounds,
    schedules,
)

CASES = [
    (Constant(0.3), {0: 0.3, 7: 0.3}),
    (Linear(1.0, 0.5, 10), {0: 1.0, 5: 0.75, 10: 0.5, 99: 0.5}),
    (Step(0.0, 0.5, 10), {0: 0.0, 9: 0.0, 10: 0.5, 99: 0.5}),
    (Cosine(1.0, 0.5, 10), {0: 1.0, 5: 0.75, 10: 0.5, 99: 0.5}),
    (Exponential(1.0, 0.25, 10), {0: 1.0, 5: 0.5, 10: 0.25, 99: 0.25}),
    (Staircase(1.0, 0.25, 3, 2, 3), {0: 1.0, 1: 1.0, 2: 0.5, 7: 0.5, 8: 0.25, 99: 0.25}),
    (Staircase(1.0, 0.1, 2, 5), {0: 1.0, 4: 1.0, 5: 0.1, 99: 0.1}),
    (Cyclical(0.0, 1.0, 40, 4, 0.5), {0: 0, 2: 0.4, 5: 1, 9: 1, 10: 0, 13: 0.6, 40: 1, 99: 1}),
    (Cyclical(0.2, 1.0, 10, 1, 1.0), {0: 0.2, 5: 0.6, 10: 1.0}),
]
SCHEDULES = [case[0] for case in CASES]


@pytest.mark.parametrize("schedule, values", CASES)
def test_values(schedule, values):
    for step, value in values.items():
        schedule.set_step(step)
        assert schedule.at(step) == pytest.approx(value)
        assert schedule.value.item() == pytest.approx(value)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_value_depends_on_the_step_alone(schedule):
    forward = []
    for step in range(50):
        schedule.set_step(step)
        forward.append(schedule.value.item())
    for step in (31, 4, 0, 49):
        schedule.set_step(step)
        assert schedule.value.item() == forward[step]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prints_as_the_call_that_makes_it(schedule):
    known = {type(each).__name__: type(each) for each in SCHEDULES}
    again = eval(repr(schedule), known)
    assert repr(again) == repr(schedule)
    assert [again.at(step) for step in range(50)] == [schedule.at(step) for step in range(50)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_is_where_the_change_ends(schedule):
    assert {schedule.at(schedule.steps + n) for n in (0, 1, 50)} == {schedule.at(schedule.steps)}
    if schedule.steps:
        before, last = (schedule.at(schedule.steps - n) for n in (1, 0))
        assert before != schedule.at(0) or before != last or schedule.steps == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bounds_hold_everywhere(schedule):
    least, most = bounds(schedule)
    assert all(least - 1e-12 <= schedule.at(step) <= most + 1e-12 for step in range(60))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_of_a_schedule_is_saved_or_trained(schedule):
    assert not schedule.state_dict() and not list(schedule.parameters())
    assert schedule.value.shape == ()


def test_the_cosine_begins_and_ends_flat():
    cosine, line = Cosine(1.0, 0.0, 100), Linear(1.0, 0.0, 100)
    assert cosine.at(10) > line.at(10) and cosine.at(90) < line.at(90)
    assert cosine.at(25) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Linear(1, 0, 0), "steps must be at least 1, got 0"),
        (lambda: Exponential(1, 0, 9), "start and end must be positive, got 1 and 0"),
        (lambda: Staircase(1, 0, 3, 9), "start and end must be positive, got 1 and 0"),
        (lambda: Staircase(1, 0.1, 1, 9), "stages must be at least 2, got 1"),
        (lambda: Staircase(1, 0.1, 3, 0), "first_steps and growth must be at least 1, got 0 and 1"),
        (lambda: Cyclical(0, 1, 3, 4), "steps must be at least cycles >= 1, got 3 and 4"),
        (lambda: Cyclical(0, 1, 9, 2, 0), r"rise must be in \(0, 1\], got 0"),
        (lambda: ELBO(-1), "beta must not be negative, got -1"),
        (lambda: ELBO(Linear(1, -0.5, 9)), "beta must not be negative, got -0.5"),
        (lambda: ELBO(math.nan), "beta must not be negative, got nan"),
        (lambda: GumbelSoftmax(Linear(1, 0, 9)), "temperature must be positive, got 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_become_schedules_and_schedules_stay():
    linear = Linear(0, 1, 2)
    assert as_schedule(linear) is linear
    assert as_schedule(2).value == 2.0


def test_schedules_are_found_by_their_names():
    estimator, objective = GumbelSoftmax(Linear(1, 0.5, 9)), ELBO(Linear(0, 1, 9))
    found = schedules(nn.ModuleList([estimator, objective]))
    assert found == {"temperature": estimator.temperature, "beta": objective.beta}


def test_no_schedule_hides_another_of_its_name():
    """Two estimators of a hierarchical model: both temperatures have to move."""
    model = nn.ModuleDict({"first": GumbelSoftmax(1.0), "second": GumbelSoftmax(0.5)})
    found = schedules(model)
    assert {s.value.item() for s in found.values()} == {1.0, 0.5}


def test_a_moved_value_reaches_the_objective():
    objective = ELBO(Linear(0.0, 1.0, 10))
    for schedule in schedules(objective).values():
        schedule.set_step(5)
    assert torch.equal(objective.beta.value, torch.tensor(0.5))
