"""One battery over the catalogue: an estimator is tested by existing, for what it declares."""

import copy
import inspect
import itertools
import math
import typing

import pytest
import torch
from oracles import (
    ANGLES,
    BETA,
    BITS,
    CASES,
    CODES,
    COUNTS,
    DIRICHLET,
    GAMMA,
    NORMAL,
    Case,
    bumpy,
    cubic,
    features,
    gradient_samples,
    linear,
    quadratic,
    z_scores,
)
from torch import nn
from torch.distributions import Bernoulli, Chi2, Independent, Normal

from vae_lab.aggregates import log_mean_exp, log_mean_exp_of_others, mean, mean_of_others
from vae_lab.distributions import OneHotCategorical, detach
from vae_lab.estimators import (
    ARM,
    ARMS,
    CARMS,
    LAX,
    OVIS,
    REBAR,
    RELAX,
    RODEO,
    DisARM,
    DoubleCV,
    DReG,
    Estimator,
    Exact,
    Fini,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    MeasureValued,
    MuProp,
    ReinMax,
    ScoreFunction,
    SumAndSample,
    UnorderedSet,
    catalog,
)
from vae_lab.estimators.base import Unbiased, descent
from vae_lab.estimators.baselines import BASELINES, MovingAverage
from vae_lab.schedules import Constant, Linear

ROWS = 200_000
FEWER = {UnorderedSet: 20_000}  # a step of it integrates numerically
LIMIT = 4.0  # standard errors
POLYNOMIALS = {"cubic f": cubic, "quadratic f": quadratic, "linear f": linear}

# Arguments between which an estimator's code chooses; of plain numbers, those that show most.
VARIANTS = {
    ScoreFunction: [
        {"num_samples": 1, "baseline": "none"},
        {"num_samples": 2, "baseline": "moving_average"},
        {"num_samples": 2, "baseline": "learned"},
        {"num_samples": 4, "baseline": "leave_one_out"},
        {"num_samples": 2, "baseline": "leave_one_out_arithmetic"},
    ],
    GumbelSoftmax: [{"temperature": 0.5}, {"temperature": 0.5, "hard": True}],
    GumbelRao: [{"temperature": 0.7, "conditional_samples": 3}],
    GappedStraightThrough: [{"gap": 1.0}, {"gap": "expected"}],
    ReinMax: [{}, {"temperature": 1.3, "num_samples": 2}],
    Fini: [{"degree": 2}, {"degree": 3}],
    MeasureValued: [{"num_samples": 2}],
    REBAR: [{}, {"eta": 0.7, "learned": False, "num_samples": 2}],
    RELAX: [{"hidden": (8,)}, {"with_f": True, "hidden": (8,), "num_samples": 2}],
    LAX: [{"num_samples": 3, "hidden": (8,)}],
    DoubleCV: [{"num_samples": 3, "alpha": 0.9}],
    RODEO: [{"num_samples": 3, "hidden": 4}],
    ARM: [{"num_samples": 2}],
    DisARM: [{"num_samples": 2}],
    ARMS: [{"num_samples": 2}, {}],
    CARMS: [{"num_samples": 2}, {}],
    UnorderedSet: [{"num_samples": 2}, {}],
    SumAndSample: [{"num_summed": 3, "num_samples": 3}],
    MuProp: [{"num_samples": 3}],
    OVIS: [{"num_samples": 2}, {"num_samples": 2, "num_auxiliary": 2}],
}


def label(cls, arguments):
    return "-".join([cls.__name__, *(str(v) for v in arguments.values())])


def variants(cls):
    return VARIANTS.get(cls, [{}])


INSTANCES = [
    pytest.param(cls, arguments, id=label(cls, arguments))
    for cls in catalog()
    for arguments in variants(cls)
]
OTHERS = (GAMMA, BETA, DIRICHLET, ANGLES)  # in which a class's variants differ no more


def pairs(cases=CASES, trait="single_sample"):
    return [
        pytest.param(cls(**arguments), case, id=f"{label(cls, arguments)}-{case.name}")
        for cls, arguments in (instance.values for instance in INSTANCES)
        for case in cases
        if cls.accepts(case.q()[0]) and getattr(cls, trait)
        if case not in OTHERS or arguments == variants(cls)[0]
    ]


def ready(estimator, dtype=torch.float64):
    """A fresh copy, whose lazy parts meet their first features under a fixed seed."""
    return copy.deepcopy(estimator).to(dtype)


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


@pytest.mark.parametrize("estimator, case", pairs([BITS, CODES]))
def test_extreme_logits_stay_finite(estimator, case):
    for dtype in (torch.float32, torch.bfloat16):
        q, leaves = case.q(64, dtype)
        with torch.no_grad():
            logits = leaves["logits"]
            logits.copy_(30 * torch.where(torch.rand_like(logits) < 0.5, -1.0, 1.0))
        q = type(q)(type(q.base_dist)(logits=logits, validate_args=False), 1, validate_args=False)
        value = ready(estimator, torch.float32)(q, case.flat(bumpy), context=torch.randn(64, 3))
        value.sum().backward()
        assert value.isfinite().all() and logits.grad.isfinite().all()


def summed(case, z):
    return z.flatten(z.ndim - case.event_dims).sum(-1)


WRONG = {
    "event": (lambda case, z: z + 0.0, "a sum over the event is missing"),
    "last": (lambda case, z: summed(case, z).unsqueeze(-1), r"a .squeeze\(-1\) is missing"),
    "mean": (lambda case, z: summed(case, z).mean(0), "leave the mean over samples and data"),
    "scalar": (lambda case, z: summed(case, z).mean(), "leave the mean over samples and data"),
    "one": (lambda case, z: summed(case, z)[:, :1], "keep the leading axes of z"),
    "number": (lambda case, z: 1.0, "f must return a tensor of real numbers, got float"),
    "complex": (lambda case, z: summed(case, z) * 1j, "real numbers, got torch.complex128"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_f_returns_is_checked(case, wrong):
    """Also where B and D are the same number, so that anything broadcasts."""
    f, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        ScoreFunction(2)(case.q(3)[0], lambda z: f(case, z))


@pytest.mark.parametrize("estimator, case", pairs())
def test_every_estimator_checks_what_f_returns(estimator, case):
    with pytest.raises(ValueError, match="a sum over the event is missing"):
        ready(estimator)(case.q(3)[0], lambda z: z + 0.0, context=features(3))


def test_the_check_says_what_was_expected():
    q = Independent(Bernoulli(logits=torch.zeros(4, 4)), 1)
    message = r"\[S, \*B\] = \[2, 4\] for z of shape \[2, 4, 4\], got \[2, 4, 4\]: a sum over the"
    with pytest.raises(ValueError, match=message):
        ARM()(q, lambda z: z)


@pytest.mark.parametrize("estimator, case", pairs())
def test_booleans_are_numbers(estimator, case):
    if type(estimator) in (REBAR, DoubleCV, RODEO, MuProp) or getattr(estimator, "with_f", False):
        with pytest.raises(ValueError, match="f must be differentiable in z"):
            ready(estimator)(case.q(9)[0], lambda z: z.flatten(2)[..., 0] > 0.5)
        return
    values = []
    for dtype in (torch.bool, torch.float64):
        torch.manual_seed(3)
        f = lambda z, dtype=dtype: (z.flatten(2)[..., 0] > 0.5).to(dtype)  # noqa: E731
        values.append(ready(estimator)(case.q(9)[0], f, context=features(9)))
    torch.testing.assert_close(*values, rtol=0, atol=0)


def test_integers_are_numbers():
    value = ScoreFunction(2)(COUNTS.q(9)[0], lambda z: torch.ones_like(z[..., 0]).long())
    assert torch.equal(value, torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize("estimator, case", pairs())
def test_f_that_does_not_depend_on_z(estimator, case):
    """Whether or not it depends on something else that is trained."""
    for theta in (1.0, torch.ones((), dtype=torch.float64, requires_grad=True)):
        q, leaves = case.q(5)
        f = lambda z, by=theta: by * torch.full_like(summed(case, z).detach(), 2.0)  # noqa: E731
        value = ready(estimator)(q, f, context=features(5))
        total = value.sum() + sum(0 * p.sum() for p in leaves.values())
        for gradient in torch.autograd.grad(total, list(leaves.values())):
            assert gradient.isfinite().all()
            if isinstance(estimator, DoubleCV | RODEO | MuProp):
                assert not gradient.any()


OWN_FORMULAS = [case for case in CASES if case not in OTHERS]
BOTH = [(*p.values, mean) for p in pairs(OWN_FORMULAS)]
BOTH += [(*p.values, log_mean_exp) for p in pairs(OWN_FORMULAS, "multi_sample")]


of_both = pytest.mark.parametrize(
    "estimator, case, aggregate",
    [pytest.param(*x, id=f"{type(x[0]).__name__}-{x[1].name}-{x[2].__name__}") for x in BOTH],
)


IMPOSSIBLE = {
    "replaced": lambda value, lost: torch.where(lost, -math.inf, value),
    "added": lambda value, lost: value + torch.zeros_like(value).masked_fill(lost, -math.inf),
}


@of_both
def test_f_of_minus_infinity(estimator, case, aggregate):
    """What the data rule out: the value says so, and no gradient or average is lost to it."""
    for way, everywhere in itertools.product(IMPOSSIBLE.values(), (False, True)):
        fresh = ready(estimator)
        value = without_faults(fresh, case, aggregate, way, 0.5 - 99 * everywhere)
        assert (value == -math.inf).all() if everywhere else not value.isnan().any()
        assert all(buffer.isfinite().all() for buffer in fresh.buffers())


def without_faults(estimator, case, aggregate, way, lost):
    scale = torch.ones(60, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        q, leaves = case.q(60)
        f = lambda z: way(scale * case.flat(bumpy)(z), z.flatten(2)[..., 0] > lost)  # noqa: E731
        value = estimator(q, f, aggregate=aggregate, context=features(60))
        value.sum().backward()
        for p in (*leaves.values(), scale, *estimator.parameters()):
            assert p.grad is None or p.grad.isfinite().all()
    return value


@of_both
def test_a_fault_of_f_reaches_the_gradient(estimator, case, aggregate):
    """Of its datum alone; also where another point of the datum is ruled out."""
    for fault, beside in ((math.nan, 1.0), (math.inf, 1.0), (math.nan, -math.inf)):
        for point in (0, -1):
            fault_at(point, ready(estimator), case, aggregate, fault, beside)


def fault_at(point, estimator, case, aggregate, fault, beside):
    q, leaves = case.q(3)

    def f(z):
        factor = torch.ones(len(z), 3, dtype=torch.float64)
        factor[-1 - point if len(z) > 1 else 0, 1] = beside
        factor[point, 1] = fault
        return factor * (1 + case.flat(bumpy)(z).square())

    estimator(q, f, aggregate=aggregate, context=features(3)).sum().backward()
    gradient = torch.cat([p.grad.flatten(1) for p in leaves.values()], 1)
    assert gradient.isfinite().all(1).tolist() == [True, False, True]
    assert all(buffer.isfinite().all() for buffer in estimator.buffers())


def test_a_bound_is_compared_with_the_others_also_where_one_is_ruled_out():
    values = torch.tensor([1.0, -math.inf, 3.0, 4.0])
    lost = -math.inf
    assert mean_of_others(values).tolist() == pytest.approx([lost, 8 / 3, lost, lost])
    assert log_mean_exp_of_others(values).isfinite().all()


def test_a_state_without_probability_may_be_ruled_out():
    logits = torch.tensor([[0.0, -math.inf, 0.0]], requires_grad=True)
    q = Independent(CODES.family(logits=logits, validate_args=False), 1, validate_args=False)
    value = Exact()(q, lambda z: torch.tensor([1.0, -math.inf, 2.0]))
    value.backward()
    assert value == 1.5 and logits.grad.isfinite().all()


NETWORKS = [LAX((8,)), RELAX((8,)), RODEO(hidden=4), ScoreFunction(2, "learned")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("estimator", NETWORKS, ids=lambda e: type(e).__name__)
def test_networks_take_every_precision(estimator, dtype):
    case = BITS if estimator.accepts(BITS.q()[0]) else NORMAL
    q, leaves = case.q(4, dtype)
    estimator = ready(estimator, torch.float32)
    estimator(q, bumpy, context=features(4).to(dtype)).sum().backward()
    for p in (*leaves.values(), *estimator.parameters()):
        assert not p.requires_grad or p.grad.isfinite().all()


@pytest.mark.parametrize("estimator", [LAX((8,)), RELAX((8,)), ScoreFunction(2, "learned")])
def test_networks_know_the_size_that_they_first_met(estimator):
    case = BITS if estimator.accepts(BITS.q()[0]) else NORMAL
    estimator = ready(estimator)
    estimator(case.q(4)[0], bumpy, context=features(4))
    with pytest.raises(ValueError, match=r"first met .* of \d numbers, got \d: make"):
        estimator(case.q(4)[0], bumpy, context=torch.cat([features(4), features(4)[:, :2]], 1))


SCALARS = [
    Case(case.name, case.family, {n: v[0] for n, v in case.parameters.items()}, 0)
    for case in (BITS, NORMAL, COUNTS, GAMMA)
]


@pytest.mark.parametrize("estimator, case", pairs(SCALARS))
def test_an_event_of_one_number(estimator, case):
    for rows in (None, 4):
        q, leaves = case.q(rows)
        context = torch.randn(*q.batch_shape, 3, dtype=torch.float64)
        value = ready(estimator)(q, lambda z: torch.sin(z), context=context)
        value.sum().backward()
        assert value.shape == q.batch_shape
        assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


def test_a_distribution_whose_parameters_are_made_of_others():
    """Chi2 is a Gamma that knows only its degrees of freedom."""
    case = Case("chi2", Chi2, {"df": [1.7, 4.2]}, 1)
    _, (exact,) = case.exact_gradient(bumpy)
    _, samples = gradient_samples(ready(LAX((8,))), case, bumpy, 100_000)
    assert z_scores(samples["df"], exact).abs().max() < LIMIT


RULED_OUT = Case(
    "codes", OneHotCategorical, {"logits": [[0.5, -math.inf, 0.1], [-1.0, 0.2, -math.inf]]}, 2
)


@pytest.mark.parametrize("estimator, case", pairs([RULED_OUT]))
def test_categories_that_are_ruled_out(estimator, case):
    """Their logits are -inf."""
    value, gradients = case.exact_gradient(bumpy)
    found = gradient_samples(ready(estimator), case, bumpy, 5000, context=features(5000))
    assert found[0].isfinite().all() and found[1]["logits"].isfinite().all()
    if estimator.unbiased is True:
        assert z_scores(found[0], value).abs() < LIMIT
        assert z_scores(found[1]["logits"], gradients[0]).abs().max() < LIMIT


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


UNBIASED = [
    pytest.param(cls(**variants(cls)[-1]), id=cls.__name__)
    for cls in catalog()
    if cls.unbiased is True and cls.single_sample
]
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


def of_parameters(estimator, case, aggregate=mean):
    """The estimate as a function of a context and of q's parameters, which are those of a batch
    or of one datum; and the parameters of a batch of 4."""
    leaves = case.q(4)[1]

    def value(context, *parameters):
        q = case.family(**dict(zip(leaves, parameters, strict=True)), validate_args=False)
        extra = case.event_dims - len(q.event_shape)
        q = Independent(q, extra, validate_args=False) if extra else q
        return estimator(q, case.flat(bumpy), aggregate=aggregate, context=context)

    return value, list(leaves.values())


# Beta, Dirichlet and von Mises samples are torch's own, and cannot be mapped.
MAPPED = [p for p in pairs([BITS, CODES, NORMAL, GAMMA, COUNTS]) if p.values[0].compiles]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of Gamma samples
@pytest.mark.parametrize("estimator, case", MAPPED)
def test_gradients_of_each_datum(estimator, case):
    """torch.func's: of one datum those of autograd, and by vmap those of every datum."""
    estimator = ready(estimator)
    value, rows = of_parameters(estimator, case)
    context = features(1)[0]
    value(features(4), *rows)
    estimator.eval()  # a running average knows no single datum
    one = [row[0].detach().requires_grad_() for row in rows]
    torch.manual_seed(2)
    expected = torch.autograd.grad(value(context, *one), one)
    gradient = torch.func.grad(value, tuple(range(1, 1 + len(one))))
    torch.manual_seed(2)
    torch.testing.assert_close(gradient(context, *one), expected)
    found = torch.func.vmap(gradient, randomness="different")(features(4), *rows)
    assert all(x.isfinite().all() for x in found)
    assert isinstance(estimator, Exact) or len(found[0].unique(dim=0)) > 1


DERIVING = [
    pytest.param(*p, id=f"{type(p[0]).__name__}-{p[1].name}")
    for p in BOTH
    if p[1] in (BITS, CODES, NORMAL) and not p[0].compiles
    if p[2] is log_mean_exp or not isinstance(p[0], DReG)
]


@pytest.mark.parametrize("estimator, case, aggregate", DERIVING)
def test_what_torch_func_cannot_transform_says_so(estimator, case, aggregate):
    value, rows = of_parameters(ready(estimator), case, aggregate)
    gradient = torch.func.grad(value, 1)
    with pytest.raises(ValueError, match=r"^torch.func cannot .* \(.*RODEO\): use another one"):
        gradient(features(1)[0], *(row[0] for row in rows))
    with pytest.raises(ValueError, match="^torch.func cannot transform"):
        torch.func.vmap(gradient, randomness="different")(features(4), *rows)


BRANCHING = (ScoreFunction, GumbelSoftmax, GappedStraightThrough, Fini, OVIS)  # by arguments
COMPILED = [
    pytest.param(
        cls,
        arguments,
        aggregate,
        marks=[pytest.mark.slow] if aggregate is log_mean_exp else [],
        id=f"{label(cls, arguments)}-{aggregate.__name__}",
    )
    for cls in catalog()
    for arguments in variants(cls)[: None if cls in BRANCHING else 1]
    for aggregate in (mean, log_mean_exp)
    if (cls.single_sample if aggregate is mean else cls in (DReG, OVIS, ScoreFunction))
    if any(cls.accepts(case.q()[0]) for case in CASES)
]


@pytest.mark.parametrize("cls, arguments, aggregate", COMPILED)
def test_compiled_equals_eager(cls, arguments, aggregate):
    """Two steps of training, with what they leave in the estimator."""
    torch._dynamo.reset()  # what an earlier test made it skip it would skip here
    case = next(case for case in CASES if cls.accepts(case.q()[0]))
    estimator = ready(cls(**arguments))
    step, rows = of_parameters(estimator, case, aggregate)
    step(features(4), *rows)  # lazy layers get their shape, and an average its first value
    if not cls.compiles:  # it is left out of the graph, and right nevertheless
        with pytest.raises(torch._dynamo.exc.Unsupported, match="takes derivatives"):
            torch.compile(step, backend="aot_eager", fullgraph=True)(features(4), *rows)
    contexts, start = [features(4) for _ in range(2)], copy.deepcopy(estimator.state_dict())
    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=cls.compiles)):
        estimator.load_state_dict(start)
        torch.manual_seed(5)
        found = []
        for context in contexts:
            value = run(context, *rows)
            own = [p for p in estimator.parameters() if p.requires_grad]
            found += [value.detach(), *torch.autograd.grad(value.sum(), [*rows, *own])]
        results.append([*found, *(b.clone() for b in estimator.buffers())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("baseline", ["moving_average", "learned"])
def test_a_compiled_baseline_is_that_from_before_the_step(baseline):
    """Also by the partitioner of the default backend, which leaves it to the backward pass."""
    torch._dynamo.reset()
    estimator = ready(ScoreFunction(2, baseline), torch.float32)
    logits, context = torch.randn(9, 3, requires_grad=True), torch.randn(9, 3)

    def step(logits, context):
        q = Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)
        return estimator(q, lambda z: bumpy(z) - 7, context=context)

    step(logits, context)
    start, gradients = copy.deepcopy(estimator.state_dict()), []
    for run in (step, torch.compile(step, backend="aot_eager_decomp_partition", fullgraph=True)):
        estimator.load_state_dict(start)
        torch.manual_seed(5)
        found = [torch.autograd.grad(run(logits, context).sum(), logits)[0] for _ in range(2)]
        gradients.append(found)
    torch.testing.assert_close(*gradients)


def test_wrong_pairing_names_what_would_do():
    q = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    with pytest.raises(
        ValueError, match="GumbelSoftmax works with .*got Normal; use one of .*Repara"
    ):
        GumbelSoftmax()(q, lambda z: z.sum(-1))
    with pytest.raises(ValueError, match="got Tensor, which is no distribution$"):
        GumbelSoftmax()(torch.zeros(3), lambda z: z)


@pytest.mark.parametrize("cls", [cls for cls in catalog() if not cls.multi_sample])
def test_single_sample_estimators_refuse_a_bound(cls):
    case = next(case for case in CASES if cls.accepts(case.q()[0]))
    with pytest.raises(ValueError, match=r"estimates the mean of f only.*use one of \w+"):
        cls()(case.q(3)[0], case.flat(bumpy), aggregate=log_mean_exp)


def test_too_large_a_support_is_refused_with_its_size():
    q = Independent(CODES.family(logits=torch.zeros(2, 20, 10)), 1)
    with pytest.raises(ValueError, match=r"10\^20 states, more than max_states=4096"):
        Exact()(q, lambda z: z.sum((-1, -2)))


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


@pytest.mark.parametrize("estimator, case", pairs())
def test_nothing_flows_back_into_the_context(estimator, case):
    """A baseline that trained the encoder through its features would change what is maximised."""
    q, _ = case.q(4)
    context = features(4).requires_grad_()
    ready(estimator)(q, case.flat(bumpy), context=context).sum().backward()
    assert context.grad is None
