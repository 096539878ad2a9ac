"""Every estimator of the catalogue, in its variants, with each family that it takes."""

import copy

import pytest
import torch
from oracles import ANGLES, BETA, CASES, DIRICHLET, GAMMA

from vae_lab.aggregates import log_mean_exp, mean
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

LIMIT = 4.0  # standard errors

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


OWN_FORMULAS = [case for case in CASES if case not in OTHERS]
BOTH = [(*p.values, mean) for p in pairs(OWN_FORMULAS)]
BOTH += [(*p.values, log_mean_exp) for p in pairs(OWN_FORMULAS, "multi_sample")]
UNBIASED = [
    pytest.param(cls(**variants(cls)[-1]), id=cls.__name__)
    for cls in catalog()
    if cls.unbiased is True and cls.single_sample
]
