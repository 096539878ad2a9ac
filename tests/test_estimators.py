"""One battery over the catalogue: an estimator is tested by existing, for what it declares."""

import inspect
import math
import typing

import pytest
import torch
from estimator_cases import LIMIT, UNBIASED, pairs, ready
from oracles import (
    BITS,
    CASES,
    CODES,
    NORMAL,
    bumpy,
    cubic,
    features,
    gradient_samples,
    linear,
    quadratic,
    z_scores,
)
from torch import nn
from torch.distributions import Bernoulli, Independent

from vae_lab.aggregates import log_mean_exp
from vae_lab.distributions import detach
from vae_lab.estimators import (
    REBAR,
    Estimator,
    Exact,
    GumbelSoftmax,
    ScoreFunction,
    UnorderedSet,
    catalog,
)
from vae_lab.estimators.base import Unbiased, descent
from vae_lab.estimators.baselines import BASELINES, MovingAverage
from vae_lab.schedules import Constant, Linear

ROWS = 200_000
FEWER = {UnorderedSet: 20_000}  # a step of it integrates numerically
POLYNOMIALS = {"cubic f": cubic, "quadratic f": quadratic, "linear f": linear}


@pytest.mark.parametrize("cls", catalog())
def test_declares_what_it_is(cls):
    assert cls.unbiased in typing.get_args(Unbiased)
    assert cls.families and cls.evaluations and cls.source
    assert issubclass(cls, Estimator) and cls.__doc__


def other(default):
    """An argument that is not the default one."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return MovingAverage(0.8)
    return (7, 5) if isinstance(default, tuple) else default + 1


@pytest.mark.parametrize("cls", catalog())
def test_prints_as_the_call_that_makes_it(cls):
    parameters = inspect.signature(cls).parameters  # without a constructor of its own: *args
    given = {n: other(p.default) for n, p in parameters.items() if p.default is not p.empty}
    text = repr(cls(**given))
    assert text == f"{cls.__name__}({', '.join(f'{n}={v!r}' for n, v in given.items())})"
    known = {each.__name__: each for each in (*catalog(), *BASELINES.values())}
    assert repr(eval(text, known)) == text


def test_a_schedule_prints_as_the_call_that_makes_it_and_a_constant_one_as_its_number():
    warm = GumbelSoftmax(Linear(1.0, 0.5, 10))
    warm.temperature.set_step(5)
    rest = "hard=False, num_samples=1)"
    assert repr(warm) == f"GumbelSoftmax(temperature=Linear(start=1.0, end=0.5, steps=10), {rest}"
    assert repr(GumbelSoftmax(0.3)) == f"GumbelSoftmax(temperature=0.3, {rest}"
    assert repr(Constant(0.3)) == "Constant(constant=0.3)"


def test_what_was_learned_is_printed_as_it_is_now():
    estimator = REBAR(eta=0.3)
    assert repr(estimator).startswith("REBAR(eta=0.3, temperature=0.5, ")
    with torch.no_grad():
        estimator.eta.fill_(0.7)
    assert repr(estimator).startswith("REBAR(eta=0.7, temperature=0.5, ")


def sampled(estimator, case, f):
    """Z-scores against the exact answer: of the value, q's gradients, and that of f's own scale."""
    rows = FEWER.get(type(estimator), ROWS)
    value, gradients = case.exact_gradient(f)
    scale = torch.ones(rows, dtype=torch.float64, requires_grad=True)
    scaled = lambda z: scale * f(z)  # noqa: E731
    samples = gradient_samples(ready(estimator), case, scaled, rows, context=features(rows))
    of_q = [z_scores(s, e).abs().max() for s, e in zip(samples[1].values(), gradients, strict=True)]
    return z_scores(samples[0], value).abs(), max(of_q), z_scores(scale.grad, value).abs()


@pytest.mark.parametrize("estimator, case", pairs())
def test_value_and_gradients_are_as_unbiased_as_declared(estimator, case):
    f = POLYNOMIALS.get(estimator.unbiased, bumpy)
    value, of_q, of_f = sampled(estimator, case, f)
    if estimator.unbiased is False:
        assert of_q > LIMIT, "declared biased, but it is not: say so"
    else:
        assert of_q < LIMIT
    if not (estimator.relaxed_points and estimator.unbiased is False):
        assert value < LIMIT and of_f < LIMIT


@pytest.mark.parametrize(
    "estimator, case", [p for p in pairs() if isinstance(p.values[0].unbiased, str)]
)
def test_partly_unbiased_is_not_unbiased(estimator, case):
    assert sampled(estimator, case, bumpy)[1] > 6


@pytest.mark.parametrize("estimator, case", pairs())
def test_f_is_called_once_on_a_stack(estimator, case):
    q, _ = case.q(5)
    calls = []

    def f(z):
        calls.append(z.shape)
        return case.flat(bumpy)(z)

    ready(estimator)(q, f, context=features(5))
    assert len(calls) == 1
    assert calls[0][1:] == (*q.batch_shape, *q.event_shape)


@pytest.mark.parametrize("estimator, case", pairs())
def test_batch_shapes(estimator, case):
    for batch in [(), (1,), (2, 3), (0,)]:
        q, leaves = case.q()
        q = q.expand(batch) if batch else q
        fresh = ready(estimator)
        context = torch.randn(*batch, 3, dtype=torch.float64)
        value = fresh(q, case.flat(bumpy), context=context)
        assert value.shape == batch
        for gradient in torch.autograd.grad(value.sum(), list(leaves.values())):
            assert gradient.isfinite().all()
        assert all(buffer.isfinite().all() for buffer in fresh.buffers())


@pytest.mark.parametrize("estimator, case", pairs())
def test_same_seed_same_gradient(estimator, case):
    gradients = []
    for _ in range(2):
        torch.manual_seed(7)
        _, samples = gradient_samples(ready(estimator), case, bumpy, 4, context=features(4))
        gradients.append(torch.cat([s.flatten() for s in samples.values()]))
    assert torch.equal(*gradients)


class TwoLayers:
    """q(z1) q(z2|z1) f(z1, z2) with two bits and then one code, and all of it enumerable."""

    def __init__(self, rows):
        torch.manual_seed(3)
        self.weight = torch.randn(2, 3, dtype=torch.float64)
        logits = torch.tensor([0.3, -0.6], dtype=torch.float64)
        self.logits = logits.expand(rows, 2).clone().requires_grad_()
        self.scale = torch.ones(rows, dtype=torch.float64, requires_grad=True)

    def value(self, outer, inner, context=None):
        def given(z1):  # [S, rows, 2] -> [S, rows]
            logits = (z1 @ self.weight) * self.scale.unsqueeze(-1)
            q2 = CODES.family(logits=logits, validate_args=False)
            z1_part = (z1 * torch.tensor([0.9, -0.4], dtype=torch.float64)).sum(-1)
            wide = None if context is None else context.expand(*z1.shape[:-1], -1)
            return inner(q2, lambda z2: torch.sin(2 * bumpy(z2) + z1_part), context=wide)

        q1 = Independent(Bernoulli(logits=self.logits, validate_args=False), 1)
        return outer(q1, given, context=context)

    def gradients(self, *estimators, context=None):
        value = self.value(*estimators, context=context)
        return torch.autograd.grad(value.sum(), [self.logits, self.scale])


ON_BITS = [p for p in UNBIASED if p.values[0].accepts(BITS.q()[0])]
ON_CODES = [p for p in UNBIASED if p.values[0].accepts(CODES.q()[0])]


@pytest.mark.parametrize("outer", ON_BITS)
@pytest.mark.parametrize("inner", ON_CODES)
def test_nested_layers(outer, inner):
    rows = 2_000  # for all pairs of classes
    exact = TwoLayers(1).gradients(Exact(), Exact())
    samples = TwoLayers(rows).gradients(ready(outer), ready(inner), context=features(rows))
    for sample, expected in zip(samples, exact, strict=True):
        assert z_scores(sample, expected[0]).abs().max() < LIMIT


MULTI_SAMPLE = [
    p
    for p in pairs([BITS, CODES], "multi_sample")
    if p.values[0].unbiased is True and p.values[0].num_samples == 2
]


@pytest.mark.parametrize("estimator, case", MULTI_SAMPLE)
def test_multi_sample_bound_against_enumeration_of_all_tuples(estimator, case):
    """Inside log-mean-exp the gradient of log q has no mean zero: it must not be detached."""

    def bound(estimator, rows):
        q, leaves = case.q(rows)
        f = lambda z: case.flat(bumpy)(z) - q.log_prob(z)  # noqa: E731
        value = estimator(q, f, aggregate=log_mean_exp, context=features(rows))
        return value.detach(), torch.autograd.grad(value.sum(), leaves["logits"])[0]

    for samples, exact in zip(bound(ready(estimator), ROWS), bound(Exact(2), 1), strict=True):
        assert z_scores(samples, exact[0]).abs().max() < LIMIT


def test_leave_one_out_is_half_the_difference_times_the_difference_of_scores():
    q, leaves = BITS.q(9)
    seen = {}

    def f(z):
        seen["z"], seen["f"] = z, bumpy(z)
        return seen["f"]

    ScoreFunction(2)(q, f).sum().backward()
    scores = seen["z"] - leaves["logits"].sigmoid()
    difference = (seen["f"][0] - seen["f"][1]).unsqueeze(-1)
    expected = 0.5 * difference * (scores[0] - scores[1])
    torch.testing.assert_close(leaves["logits"].grad, expected.detach())


def test_an_unbaselined_bound_is_the_score_function_of_one_sample_of_tuples():
    """VIMCO's control variate aside, the bound is an f like any other, of S samples at once."""
    q, leaves = BITS.q(ROWS)
    tuples = Independent(q.expand((2, ROWS)), 0)
    logits = leaves["logits"].unsqueeze(1).expand(-1, 2, -1)
    tuples = Independent(Bernoulli(logits=logits, validate_args=False), 2, validate_args=False)

    def bound(z):  # [1, rows, 2, n] -> [1, rows]
        return bumpy(z).movedim(-1, 0).logsumexp(0) - math.log(2)

    ScoreFunction(1, "none")(tuples, bound).sum().backward()
    q1, leaves1 = BITS.q()
    exact = Exact(2)(q1, bumpy, aggregate=log_mean_exp)
    (gradient,) = torch.autograd.grad(exact, leaves1["logits"])
    assert z_scores(leaves["logits"].grad, gradient).abs().max() < LIMIT


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_own_losses_fall_whether_the_value_is_maximised_or_minimised(sign):
    weight = nn.Parameter(torch.tensor(2.0))
    value = torch.tensor(5.0) + descent(weight.square())
    assert value == 5.0
    (sign * value).backward()
    assert weight.grad == 4.0


def test_detached_from_the_leave_one_out_baseline_would_be_caught():
    """Negative control: a baseline that contains its own sample is biased; the z-test sees it."""

    class Contaminated(ScoreFunction):
        def estimate(self, q, f, aggregate, context):
            z = q.sample((self.num_samples,))
            values = f(z)
            credit = (values - values.mean(0)).detach() / self.num_samples
            return values.mean(0) + ((credit * q.log_prob(z)).sum(0) * 1.0) * 1.0

    _, exact = BITS.exact_gradient(bumpy)
    _, samples = gradient_samples(Contaminated(2), BITS, bumpy, ROWS)
    assert z_scores(samples["logits"], exact[0]).abs().max() > 10


def test_gumbel_softmax_tends_to_the_exact_gradient():
    _, (exact,) = CODES.exact_gradient(bumpy)
    errors = []
    for temperature in (2.0, 0.5, 0.1):
        _, samples = gradient_samples(GumbelSoftmax(temperature), CODES, bumpy, ROWS)
        errors.append((samples["logits"].mean(0) - exact).norm().item())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GumbelSoftmax(0.0), "temperature must be positive, got 0"),
        (lambda: GumbelSoftmax(num_samples=0), "num_samples must be an integer of at least 1"),
        (lambda: ScoreFunction(1), "num_samples must be an integer of at least 2, got 1"),
        (lambda: ScoreFunction(2, "rloo"), "baseline must be one of none, moving_average"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_small_temperature_warns():
    with pytest.warns(UserWarning, match="below 0.05"):
        GumbelSoftmax(0.01)
    GumbelSoftmax(0.05)  # a warning would be an error


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_detached_distribution_is_the_same_but_constant(case):
    q, leaves = case.q(3)
    z = q.sample()
    constant = detach(q)
    assert torch.equal(constant.log_prob(z), q.log_prob(z))
    assert not constant.log_prob(z).requires_grad
    assert NORMAL.q()[0].event_shape == (2,)
