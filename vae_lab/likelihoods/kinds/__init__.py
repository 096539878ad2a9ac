"""The kinds of columns that a table may have, by the names that are typed for them."""

from .base import Column as Column
from .base import Kind as Kind
from .base import leave_out as leave_out
from .categories import Bernoulli, Categorical, Ordinal
from .counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from .numeric import Gaussian, LogNormal, StudentT

KINDS: dict[str, type[Kind]] = {
    "gaussian": Gaussian,
    "lognormal": LogNormal,
    "student_t": StudentT,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "ordinal": Ordinal,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "zero_inflated_poisson": ZeroInflatedPoisson,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
}
