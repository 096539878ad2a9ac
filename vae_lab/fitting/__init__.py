"""Training from Python, without Lightning: :func:`fit`."""

from .door import fit as fit
