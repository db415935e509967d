"""Quiet: a switch that makes gradlab's own hooks look away while a probe runs the model for its own purposes.

A plain counter, not a context variable: gradient hooks run on the autograd engine's threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()  # two threads that begin a probe at once must both be counted
depth = 0
"""How many blocks are open; 0 where gradlab's hooks record. Read as it is where a call would cost too much."""


def muted() -> bool:
    """Whether gradlab's own hooks are to record nothing at this moment."""
    return depth > 0


@contextmanager
def muting() -> Iterator[None]:
    """While open, no monitor in this process records anything. May be nested."""
    global depth
    with _lock:
        depth += 1
    try:
        yield
    finally:
        with _lock:
            depth -= 1
