"""Every estimator under torch.func and torch.compile: the gradients are the same."""

import copy

import pytest
import torch
from estimator_cases import BOTH, label, pairs, ready, variants
from oracles import BITS, CASES, CODES, COUNTS, GAMMA, NORMAL, bumpy, features
from torch.distributions import Bernoulli, Independent

from vae_lab.aggregates import log_mean_exp, mean
from vae_lab.estimators import (
    OVIS,
    DReG,
    Exact,
    Fini,
    GappedStraightThrough,
    GumbelSoftmax,
    ScoreFunction,
    catalog,
)


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
