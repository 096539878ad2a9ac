"""What the C library does with memory that is freed."""

import ctypes
import sys

import pytest

from vae_lab import heap


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_without_glibc_nothing_is_set(platform, monkeypatch):
    def refuse(name):
        raise TypeError(f"no library {name}")  # as Windows does

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    heap.keep_freed()
