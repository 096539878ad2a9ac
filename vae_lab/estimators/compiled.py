"""Two ways out of the compiler, with which a compiled step has the gradients of an eager one.

This imports the compiler: slowly, so only where something is being compiled.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


# torch.compile does not trace autograd.grad unless told to by a process-wide flag, and fails on a
# graph that breaks there. So what takes them runs as it is, f included.
@torch.compiler.disable(reason="it takes derivatives of f or of a network")
def run_eagerly(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments)


# What only the backward pass needs torch.compile computes there, from buffers that the step has
# changed since (pytorch's pull request 197039). What an operator unknown to it returned it keeps,
# if the forward pass needs that too: so the update of a buffer has to start from this copy as well.
@torch.library.custom_op("vae_lab::saved", mutates_args=())
def saved(x: torch.Tensor) -> torch.Tensor:
    """A copy of buffers, for the backward pass to read them as the forward pass did."""
    return x.clone()


@saved.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)
