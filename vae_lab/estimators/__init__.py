"""Estimators of the gradient of an expectation, one page a paper."""

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
    "catalog",
]
