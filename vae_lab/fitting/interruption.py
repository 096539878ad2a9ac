"""Ctrl-C while a model is trained."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Has Ctrl-C been typed since the training began."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within this context a first Ctrl-C is noted, and a second one raises KeyboardInterrupt.

    Only where it would have raised at once: a program's own answer to Ctrl-C stays.
    """
    found = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        if found.asked:
            raise KeyboardInterrupt
        found.asked = True

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield found
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
