"""What an estimator is given: f of every kind, also at fault or minus infinity; q at extremes."""

import itertools
import math

import pytest
import torch
from estimator_cases import BOTH, LIMIT, pairs, ready
from oracles import (
    BITS,
    CASES,
    CODES,
    COUNTS,
    GAMMA,
    NORMAL,
    Case,
    bumpy,
    features,
    gradient_samples,
    z_scores,
)
from torch.distributions import Bernoulli, Chi2, Independent, Normal

from vae_lab.aggregates import log_mean_exp, log_mean_exp_of_others, mean_of_others
from vae_lab.distributions import OneHotCategorical
from vae_lab.estimators import (
    ARM,
    LAX,
    REBAR,
    RELAX,
    RODEO,
    DoubleCV,
    Exact,
    GumbelSoftmax,
    MuProp,
    ScoreFunction,
    catalog,
)


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


@pytest.mark.parametrize("estimator, case", pairs())
def test_nothing_flows_back_into_the_context(estimator, case):
    """A baseline that trained the encoder through its features would change what is maximised."""
    q, _ = case.q(4)
    context = features(4).requires_grad_()
    ready(estimator)(q, case.flat(bumpy), context=context).sum().backward()
    assert context.grad is None
