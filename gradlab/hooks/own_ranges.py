"""Ranges around gradlab's own work in a trace, while a profile window is recorded and at no other time.

Belongs here: whether there are ranges, and what they are called. Does not: where gradlab works (`interpreter.own_ops`,
`monitor.training_step`), and what is read off a trace (`profiling.analysis`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

OWN_WORK = "gradlab: own work"
"""The name of the ranges."""
make: Any = None
"""Makes a range of a name; None while nothing is recorded. `own_ops` reads it: a call would cost too much there."""


def own_range() -> AbstractContextManager[Any]:
    """A range around work of gradlab's that runs no ops of torch's, or runs them elsewhere."""
    return nullcontext() if make is None else make(OWN_WORK)
