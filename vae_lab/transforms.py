"""Whether what runs is transformed by torch, so that a fast Function of our own would not do."""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether torch.func transforms what runs, or it is differentiated in forward mode.

    A Function that could be, one with `setup_context` and `jvp`, is slow to call. False in a
    function that is being compiled, where torch asks for neither.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )
