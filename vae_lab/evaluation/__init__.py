"""Measures how good a trained model is, in numbers that can be believed.

:func:`evaluate` puts together what the modules here measure, each of which can be used alone:

* :mod:`~vae_lab.evaluation.evidence`: log p(x), by importance weighting, annealed importance
  sampling and enumeration;
* :mod:`~vae_lab.evaluation.decomposition`: what the KL is made of, and how much of z is in use;
* :mod:`~vae_lab.evaluation.samples`: FID, precision and recall of samples;
* :mod:`~vae_lab.evaluation.representation`: what a classifier can do with the codes;
* :mod:`~vae_lab.evaluation.disentanglement`: whether single codes stand for single factors;
* :mod:`~vae_lab.evaluation.diagnosis`: what is wrong, and what to type.
"""

from .diagnosis import Diagnosis
from .measurement import OnProgress
from .results import Evaluation, Metric
from .whole import PARTS, Settings, evaluate

__all__ = ["PARTS", "Diagnosis", "Evaluation", "Metric", "OnProgress", "Settings", "evaluate"]
