"""When a profile window is open: the options, and the pure function from step number to phase. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradlab.errors import ProfileError

Phase = Literal["off", "warmup", "active", "last"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Profile a few steps: skip `wait`, warm up for `warmup`, record `active`, and do so `repeat` times."""

    wait: int = 5
    """Steps before each window."""
    warmup: int = 2
    """Steps recorded and thrown away, so that the profiler's own start is not measured."""
    active: int = 3
    """Steps recorded in each window."""
    repeat: int = 1
    """How many windows."""
    memory: bool = True
    """Record allocations."""
    shapes: bool = False
    """Record the shapes of operands (costs more)."""
    stack: bool = False
    """Record Python call stacks (costs more)."""

    def __post_init__(self) -> None:
        for name, least in (("wait", 0), ("warmup", 0), ("active", 1), ("repeat", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ProfileError(f"Profile: {name} must be at least {least}, got {value!r}.")

    def phase(self, step: int) -> Phase:
        """The phase of a step, counted from 0; `last` is the final recorded step of a window."""
        length = self.wait + self.warmup + self.active
        if step >= length * self.repeat:
            return "off"
        within = step % length
        if within < self.wait:
            return "off"
        if within < self.wait + self.warmup:
            return "warmup"
        return "last" if within == length - 1 else "active"

    def next_window(self, step: int) -> int:
        """The step, counted from 0, with which the next turn of the schedule begins."""
        length = self.wait + self.warmup + self.active
        return (step // length + 1) * length
