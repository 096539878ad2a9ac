"""Likelihoods p(x | z): what the decoder's output means.

A likelihood owns the data's range, the shape of what the decoder must give, the log-probability of
a datum and the datum to show. It never sees z, only the decoder's output. A datum may have any
number of axes, be it a vector [D], a series [T, D] or an image [C, H, W]; only
:class:`DiscretizedLogisticMixture` knows that it is an image. :class:`Columns` is for tables, whose
columns are of different kinds.

A likelihood also owns what is known of the data: their units, and that some values are missing.
"""

from .base import Likelihood as Likelihood
from .bernoulli import Bernoulli, ContinuousBernoulli
from .columns import Columns
from .location import DiscretizedLogistic, Gaussian, Laplace
from .mixture import DiscretizedLogisticMixture

# The likelihoods, which a released model may name.
__all__ = [
    "Bernoulli",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
]
