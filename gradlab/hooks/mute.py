"""Muting: while gradlab runs the model for purposes of its own, none of its hooks records anything.

A plain counter, not a context variable: gradient hooks run on the autograd engine's threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()  # two threads that begin to mute at once must both be counted
depth = 0
"""How many `muting` blocks are open. `interpreter.must_not_record` reads it: a call would cost too much there."""


@contextmanager
def muting() -> Iterator[None]:
    """While open, no hook of gradlab's in this process records anything. May be nested."""
    global depth
    with _lock:
        depth += 1
    try:
        yield
    finally:
        with _lock:
            depth -= 1
