"""The versions of Lightning whose private parts are known."""

import pytorch_lightning as pl

KNOWN = ("2.6",)  # tests/test_lightning.py compares each private way with the public one


def is_known() -> bool:
    """Whether the installed version of Lightning is a known one."""
    return ".".join(pl.__version__.split(".")[:2]) in KNOWN
