"""StepWatch: sees when a step is out of the ordinary, by its time and its wait for data."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from gradlab.profiling.options import Reason, Trigger

_REMEMBERED = 50
_LEAST = 10
_DATA_STEPS = 20


class StepWatch:
    """Looks at each step outside windows. Cost: a microsecond a step."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._waits: deque[tuple[float, float]] = deque(maxlen=_DATA_STEPS)

    def look(self, step: int, seconds: float, data_seconds: float) -> Reason | None:
        """A step has taken `seconds`, of which it waited `data_seconds` for data: the reason for a window, if any.

        The median is that of the steps before. A reason makes both rules start over, so that one cause opens one
        window.
        """
        reason = self._slow(step, seconds) or self._starved(step, seconds, data_seconds)
        self._remember(seconds)
        if reason is not None:
            self._recent.clear()
            self._sorted.clear()
            self._waits.clear()
        return reason

    def _slow(self, step: int, seconds: float) -> Reason | None:
        limit = self._trigger.slow_step
        if limit is None or len(self._sorted) < _LEAST:
            return None
        median = self._sorted[len(self._sorted) // 2]
        if seconds <= limit * median:
            return None
        times = seconds / median
        return Reason("slow_step", f"step {step} took {1e3 * seconds:.3g} ms, {times:.3g} times the median")

    def _starved(self, step: int, seconds: float, data_seconds: float) -> Reason | None:
        limit = self._trigger.data_wait
        self._waits.append((seconds, data_seconds))
        if limit is None or len(self._waits) < _DATA_STEPS:
            return None
        share = sum(waited for _, waited in self._waits) / max(sum(total for total, _ in self._waits), 1e-12)
        if share <= limit:
            return None
        return Reason("data_wait", f"{share:.0%} of the {_DATA_STEPS} steps up to {step} waited for data")

    def _remember(self, seconds: float) -> None:
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
