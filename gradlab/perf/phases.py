"""The phases of a training step: their names, and the time that one step spent in each.

Belongs here: names and records, without torch. Does not: the clock that measures them (clock.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Phase = Literal["data", "h2d", "forward", "loss", "backward", "optimizer", "callbacks", "other"]
PHASES: tuple[Phase, ...] = ("data", "h2d", "forward", "loss", "backward", "optimizer", "callbacks", "other")
"""The phases of the scalars `perf/*`; `other` is the rest of a step."""
DEVICE_PHASES: frozenset[Phase] = frozenset({"h2d", "forward", "loss", "backward", "optimizer"})
"""Those that are work for the device, where there is one."""


class StepTimes(NamedTuple):
    """The time of one step by phase, nanoseconds. On a device its phases may overlap the host's."""

    step: int
    total: int
    """From the end of the step before to the end of this one, on the host."""
    phases: Mapping[Phase, int]
