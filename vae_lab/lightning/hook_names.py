"""The name of the hook that runs, which Lightning keeps on the module for `self.log`."""

from typing import Any, TypeVar

import pytorch_lightning as pl
from torch import nn

from .versions import is_known

Module = TypeVar("Module", bound=pl.LightningModule)


def notes_hooks_quickly(cls: type[Module]) -> type[Module]:
    """Makes modules of this class note the name in their `__dict__`; returns the class.

    Lightning does it fifty times a step, through `nn.Module.__setattr__`; that first looks whether
    the value is a parameter, a module or a buffer, which takes 2 to 5 us each time. A class stays
    as it is under a version of Lightning that is not known.
    """
    if not is_known():
        return cls
    usual = cls.__setattr__

    def note(self: nn.Module, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            usual(self, name, value)

    cls.__setattr__ = note  # type: ignore[method-assign, assignment]
    return cls
