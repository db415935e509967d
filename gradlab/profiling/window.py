"""Window: one profile window from the decision to open it to its last step, and the reason for it.

Belongs here: records that the decision (triggers.py), the request (requests.py), the profiler and the files share,
without torch. Does not: what is recorded in a window (recording.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WindowState = Literal["warmup", "active", "last"]
ReasonKind = Literal["schedule", "slow_step", "data_wait", "finding", "demand"]

UNTIL_CLOSED = 2**40
"""As many active steps: record until the window is closed."""


@dataclass(frozen=True)
class Reason:
    """Why a window is opened."""

    kind: ReasonKind
    detail: str = ""
    """A sentence, or ""."""


@dataclass(kw_only=True)
class Window:
    """One window on its way: why it is opened, how long it is, and how many of its steps have ended."""

    reason: Reason
    warmup: int
    active: int
    num_ended: int = 0
    request_id: str = ""
    """The id of the request that it answers, or ""."""

    @property
    def state(self) -> WindowState:
        """The state in the step under way; `last` is the final recorded step."""
        if self.num_ended < self.warmup:
            return "warmup"
        return "last" if self.num_ended == self.warmup + self.active - 1 else "active"
