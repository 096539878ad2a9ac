"""Finds the known name that was probably meant by an unknown one."""

import difflib
from collections.abc import Iterable


def did_you_mean(typed: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of an error line about an unknown name: the most similar known one, if any."""
    close = closest(typed, known)
    return "" if close is None else f"; did you mean {prefix}{close}"


def closest(typed: str, known: Iterable[str]) -> str | None:
    """The known name closest to what was typed, the last parts of both being alike too; or else the
    one with the closest last part. Of equally close ones the first."""
    close, near = {}, {}
    for name in known:
        last = _alike(name.rpartition(".")[2], typed.rpartition(".")[2])
        whole = _alike(name, typed)
        if typed.startswith(f"{name}."):
            continue
        if last >= 0.6 and whole >= 0.75:
            close[name] = whole
        if last >= 0.7:
            near[name] = last
    close = close or near
    return max(close, key=close.__getitem__) if close else None


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
