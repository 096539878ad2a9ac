"""Training from Python, without Lightning: :func:`fit`."""

from .door import fit as fit
from .second_stage import fit_prior as fit_prior
