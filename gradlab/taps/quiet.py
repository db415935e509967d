"""Quiet: a switch that makes gradlab's own hooks look away while a probe runs the model for its own purposes.

A plain counter, not a context variable: gradient hooks run on the autograd engine's threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


def muted() -> bool:
    """Whether gradlab's own hooks are to record nothing at this moment."""
    return _depth > 0


@contextmanager
def muting() -> Iterator[None]:
    """While open, no monitor in this process records anything. May be nested."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
