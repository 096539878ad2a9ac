"""Settings of the C library for memory that is freed."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as malloc.h of glibc numbers them
PIECE = 32 << 20  # bytes up to which a tensor's memory is kept
KEPT = 512 << 20  # bytes that are kept at most


def keep_freed() -> None:
    """Keeps what a step frees for the next step, where the C library is glibc.

    By default it returns large pieces to the system, which makes each page of them anew: up to 5000
    pages, some 5 ms, in a step of a convolutional network of 25 ms. Settings of malloc's in the
    environment are left alone.
    """
    if sys.platform != "linux":
        return  # there is no glibc, and on Windows no library without a name
    typed = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = None if typed else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, PIECE)
        mallopt(TRIM_THRESHOLD, KEPT)
