"""Estimators of the gradient of an expectation, one page a paper.

Each has an example, which begins with these lines:

>>> import torch
>>> from torch.distributions import Bernoulli, Independent, Normal, OneHotCategorical, Poisson
>>> from vae_lab.aggregates import log_mean_exp
>>> from vae_lab.estimators import *
>>> _ = torch.manual_seed(0)

An example makes many independent estimates at once, one for each row of the parameters. What it
prints, such as `0.08 +- 0.17`, is the mean and the standard deviation of their gradients.
"""

from .antithetic import ARM, ARMS, DisARM
from .base import Estimator, catalog
from .coupled import ARSM, CARMS
from .exact import Exact
from .fini import Fini
from .measure_valued import MeasureValued
from .ovis import OVIS
from .pathwise import DReG, Reparameterization, StickingTheLanding
from .rao_blackwell import GumbelRao
from .rebar import REBAR
from .relax import LAX, RELAX
from .relaxations import GumbelSoftmax, StraightThrough
from .score_function import ScoreFunction
from .stein import RODEO, DoubleCV
from .straight_through import DecoupledSTGumbelSoftmax, GappedStraightThrough, ReinMax
from .taylor import MuProp
from .vector_quantization import VectorQuantization
from .without_replacement import SumAndSample, UnorderedSet

__all__ = [
    "ARM",
    "ARMS",
    "ARSM",
    "CARMS",
    "DReG",
    "DecoupledSTGumbelSoftmax",
    "DisARM",
    "DoubleCV",
    "Estimator",
    "Exact",
    "Fini",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "LAX",
    "MeasureValued",
    "MuProp",
    "OVIS",
    "REBAR",
    "RELAX",
    "RODEO",
    "ReinMax",
    "Reparameterization",
    "ScoreFunction",
    "StickingTheLanding",
    "StraightThrough",
    "SumAndSample",
    "UnorderedSet",
    "VectorQuantization",
    "catalog",
]
