"""Parts that print as the call that makes them: `GumbelSoftmax(temperature=0.5, hard=True, ...)`.

For this a part keeps every argument of its constructor under the argument's own name.
"""

import inspect
from typing import Any

from torch import Tensor, nn


class PrintsArguments:
    """Gives a class a repr of one line, made of its constructor's arguments as they are now.

    It stands before ``nn.Module`` among the bases, whose own repr would list the modules inside.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={_typed(value)}" for name, value in arguments(self).items())

    def as_argument(self) -> str:
        """The text of this part where it is an argument of another one."""
        return repr(self)


def arguments(part: object) -> dict[str, Any]:
    """The constructor's arguments by name, as the part keeps them; without those it does not."""
    names = inspect.signature(type(part)).parameters
    return {name: getattr(part, name) for name in names if hasattr(part, name)}


def number(x: Tensor) -> float:
    """The number in a tensor of one element: 0.3, and not what float32 makes of it."""
    return float(f"{x.item():.6g}")


def _typed(value: object) -> str:
    """The text to type for a value."""
    if isinstance(value, PrintsArguments):
        return value.as_argument()
    plain = type(value) in (Tensor, nn.Parameter)  # a sharded one would wait for other processes
    if isinstance(value, Tensor) and plain and value.numel() == 1 and not value.is_meta:
        return repr(number(value))
    return repr(value)
