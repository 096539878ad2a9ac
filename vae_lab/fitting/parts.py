"""The parts of a model that the caller names, or leaves open."""

import difflib
import inspect
import math
from copy import deepcopy
from typing import Any

from ..description import CLASSES
from ..estimators import Estimator, catalog
from ..estimators.suited import suited
from ..inputs import Shape
from ..latents import CorrelatedGaussian, Gaussian, Latent
from ..likelihoods import Likelihood
from ..losses import Adversarial, Perceptual
from ..networks import MLP, Conv, Grid, Network
from ..objectives import ELBO, IWAE, MonteCarloELBO, Objective
from ..priors import Prior

BASES = {
    "latent": Latent,
    "likelihood": Likelihood,
    "prior": Prior,
    "estimator": Estimator,
    "objective": Objective,
}
OBJECTIVES = (ELBO, IWAE, MonteCarloELBO, Perceptual, Adversarial)
WIDEST_LATENT = 20  # of the default; what a datum does not need of it stays at the prior
WIDENING = 8  # of the first layer, over the values of a datum
NARROWEST_LAYER, WIDEST_LAYER = 64, 512
FEW = 2000  # data: one smooth layer, which generalises better (docs/tables.md)
SMALL, LARGE = 12, 64  # pixels along a side: up to SMALL an MLP, from there a Conv, above a Grid
COARSEST = 7  # pixels along a side at which a Conv halves no more
SAMPLES = 8  # of z, in the default estimator of a bound of several samples


def part(kind: str, value: Any) -> Any:
    """A part from an object, which is copied; or from a class or its name, made without arguments.

    Args:
        kind: network, latent, likelihood, prior, estimator or objective.

    Raises:
        ValueError: there is no such part, or it does not go without arguments.
    """
    if isinstance(value, str):
        value = _by_name(kind, value)
    if isinstance(value, type):
        try:
            value = value()
        except TypeError:
            call = f"{value.__name__}{inspect.signature(value)}"
            raise ValueError(f"{kind} {value.__name__} needs arguments: pass {call}") from None
    base = BASES.get(kind)
    if not (isinstance(value, base) if base else callable(getattr(value, "encoder", None))):
        raise ValueError(f"{kind} must be {_known(kind)}, made or by its name, got {value!r}")
    return deepcopy(value)


def _classes(kind: str) -> dict[str, type]:
    if kind == "estimator":
        return {cls.__name__: cls for cls in catalog()}
    if kind == "objective":
        return {cls.__name__: cls for cls in OBJECTIVES}
    return CLASSES[kind]


def _known(kind: str) -> str:
    return f"one of {', '.join(_classes(kind))}"


def _by_name(kind: str, name: str) -> type:
    """A class by its name in any spelling: GumbelSoftmax, gumbel_softmax, gumbel-softmax."""
    classes = {_plain(known): cls for known, cls in _classes(kind).items()}
    if found := classes.get(_plain(name)):
        return found
    close = difflib.get_close_matches(_plain(name), classes, 1)
    hint = f"did you mean {classes[close[0]].__name__}" if close else f"known: {_known(kind)[7:]}"
    raise ValueError(f"unknown {kind} {name!r}; {hint}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def network_for(shape: Shape, count: int) -> Network:
    """A network of the size of the data: convolutions for pictures, dense layers for the rest.

    Args:
        count: how many data there are to train on.
    """
    if len(shape) == 3 and min(shape[1:]) > SMALL:
        if max(shape[1:]) > LARGE:
            return Grid()
        halvings = math.ceil(math.log2(max(shape[1:]) / COARSEST))
        return Conv(tuple(32 * 2**stage for stage in range(max(halvings, 1))))
    width = 2 ** math.ceil(math.log2(WIDENING * math.prod(shape)))
    width = min(WIDEST_LAYER, max(NARROWEST_LAYER, width))
    if count < FEW:
        return MLP((max(width // 2, NARROWEST_LAYER),), "silu")
    return MLP((width, width // 2))


def latent_for(shape: Shape, missing: bool = False) -> Latent:
    """A Gaussian of at most half as many numbers as a datum has: with correlations where values are
    missing, as what is left of them tells of some directions and not of others."""
    family = CorrelatedGaussian if missing else Gaussian
    return family(min(WIDEST_LATENT, max(1, math.prod(shape) // 2)))


def estimator_for(latent: Latent, objective: Objective) -> Estimator:
    """The one that suits it, of several samples where the objective is a bound of several."""
    return suited(latent, SAMPLES if objective.multi_sample else None)
