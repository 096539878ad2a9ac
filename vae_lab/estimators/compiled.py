"""Inside a compiled step: the estimators that do not compile. This imports the compiler: slowly."""

from typing import Any

import torch

from .base import Estimator


# torch.compile does not trace autograd.grad unless told to by a process-wide flag, and fails on a
# graph that breaks there. So these estimators run as they are, f included.
@torch.compiler.disable(reason="an estimator that takes derivatives of f or of a network")
def as_it_is(estimator: Estimator, *arguments: Any) -> torch.Tensor:
    return estimator.estimate(*arguments)
