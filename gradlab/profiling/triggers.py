"""Which step begins a window, and why: the schedule, a step out of the ordinary, a finding, a request.

Belongs here: every reason for a window (`WindowScheduler`, `StepTimeTriggers`) and every limit against one (`Limits`).
Does not: the window itself (profiler.py), and how another process asks for one (requests.py).
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections import deque
from pathlib import Path
from time import monotonic

from gradlab.profiling.options import Profile, Trigger
from gradlab.profiling.requests import RequestPoller, request_from_all_ranks
from gradlab.profiling.window import Reason, Window

_MEGABYTE = 10**6
_MEDIAN_STEPS = 50
_LEAST_STEPS = 10
_DATA_STEPS = 20

_log = logging.getLogger("gradlab")


class WindowScheduler:
    """Decides for one process of a run when a window begins.

    With several ranks, rank zero decides about windows outside the schedule, and all open them at the same step.
    Cost: a microsecond a step.
    """

    def __init__(self, options: Profile, folder: Path, *, rank: int, world_size: int) -> None:
        self.limits = Limits(options)
        self.position = 0
        """Of the running step in the schedule."""
        self.trigger = options.trigger or Trigger()
        self._options = options
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._step_time_triggers = StepTimeTriggers(self.trigger)
        self._requests = RequestPoller(folder, rank=rank, world_size=world_size)
        self._reason: Reason | None = None  # for a window outside the schedule, as soon as none is open
        self._step_seconds = 0.0  # of an ordinary step, smoothed
        self._logged_refusals: set[str] = set()

    def request(self, reason: Reason) -> None:
        """There is a reason for a window. With several ranks, that of rank zero counts for all."""
        if self._world_size == 1:
            self._reason = reason
        elif self._rank == 0:
            request_from_all_ranks(self._folder, reason, active=self._options.active)

    def step_measured(self, step: int, seconds: float, data_seconds: float) -> None:
        """A step outside windows and pauses took this long: its time may be a reason for a window."""
        self._step_seconds = seconds if not self._step_seconds else 0.9 * self._step_seconds + 0.1 * seconds
        if self._options.trigger is not None:
            reason = self._step_time_triggers.reason_of(step, seconds, data_seconds)
            if reason is not None:
                self.request(reason)

    def window_at(self, step: int) -> Window | None:
        """The window that begins with `step`, the one that is about to run, if any."""
        window = self._next_window(step)
        if window is None:
            return None
        self._reason = None
        refusal = self.limits.refusal(window.reason)
        if not refusal:
            return window
        self.answer(window, error=f"no window: {refusal}.")
        if refusal not in self._logged_refusals:
            self._logged_refusals.add(refusal)
            _log.info("a profile window (%s) was left out: %s", window.reason.kind, refusal)
        return None

    def step_ended(self, *, from_beginning: bool) -> None:
        """A step has ended; if it was not followed from its beginning, a window due with it can still begin."""
        if from_beginning or not self._options.starts(self.position):
            self.position += 1

    def window_cut_short(self) -> None:
        """A window ended before its last step: the schedule goes on with the next one."""
        self.position = self._options.after_window(self.position)

    def answer(self, window: Window, /, **answer: str) -> None:
        """Answer the request that a window was opened for, if it was one."""
        if window.request_id:
            self._requests.answer(window.request_id, **answer)

    def missed_schedule(self) -> str:
        """A sentence where a schedule was set up and training ended before its first recorded step; "" otherwise."""
        first = self._options.wait + self._options.warmup
        if self.position > first or not self._options.num_windows:
            return ""
        steps = "1 step" if self.position == 1 else f"{self.position} steps"
        return (
            f"no profile was recorded: training ended after {steps}, and the first window begins after {first} "
            f"(wait={self._options.wait}, warmup={self._options.warmup})."
        )

    def _next_window(self, step: int) -> Window | None:
        warmup, active = self._options.warmup, self._options.active
        request = self._requests.due(step, self._step_seconds)
        if request is not None:
            return Window(reason=request.reason, warmup=warmup, active=request.active, request_id=request.id)
        if self._options.starts(self.position):
            return Window(reason=Reason("schedule"), warmup=warmup, active=active)
        if self._reason is not None:
            return Window(reason=self._reason, warmup=warmup, active=active)
        return None


class StepTimeTriggers:
    """The triggers `slow_step` and `data_wait`, on the steps outside windows. Cost: a microsecond a step."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []  # the same, for the median
        self._data_waits: deque[tuple[float, float]] = deque(maxlen=_DATA_STEPS)

    def reason_of(self, step: int, seconds: float, data_seconds: float) -> Reason | None:
        """The reason for a window, if any, in a step of `seconds` that waited `data_seconds` of them for data.

        The median is that of the steps before. A reason makes both triggers start over, so that one cause opens one
        window.
        """
        reason = self._slow_step(step, seconds) or self._data_wait(step, seconds, data_seconds)
        self._remember(seconds)
        if reason is not None:
            self._recent.clear()
            self._sorted.clear()
            self._data_waits.clear()
        return reason

    def _slow_step(self, step: int, seconds: float) -> Reason | None:
        limit = self._trigger.slow_step
        if limit is None or len(self._sorted) < _LEAST_STEPS:
            return None
        median = self._sorted[len(self._sorted) // 2]
        if seconds <= limit * median:
            return None
        times = seconds / median
        return Reason("slow_step", f"step {step} took {1e3 * seconds:.3g} ms, {times:.3g} times the median")

    def _data_wait(self, step: int, seconds: float, data_seconds: float) -> Reason | None:
        limit = self._trigger.data_wait
        self._data_waits.append((seconds, data_seconds))
        if limit is None or len(self._data_waits) < _DATA_STEPS:
            return None
        share = sum(waited for _, waited in self._data_waits) / max(sum(total for total, _ in self._data_waits), 1e-12)
        if share <= limit:
            return None
        return Reason("data_wait", f"{share:.0%} of the {_DATA_STEPS} steps up to {step} waited for data")

    def _remember(self, seconds: float) -> None:
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > _MEDIAN_STEPS:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]


class Limits:
    """Counts windows, bytes and wall time against `max_windows`, `max_megabytes` and `max_share`."""

    def __init__(self, options: Profile) -> None:
        self._options = options
        self._run_began: float | None = None
        self._window_opened: float | None = None
        self._num_windows = 0
        self.num_bytes = 0
        """Of all windows' files."""
        self.seconds = 0.0
        """Wall time between the opening of windows and their end, with what writing them has taken."""

    def run_began(self) -> None:
        """The run begins, or goes on."""
        if self._run_began is None:
            self._run_began = monotonic()

    def window_opened(self, reason: Reason) -> None:
        """A window is opened."""
        self._window_opened = monotonic()
        if reason.kind != "demand":
            self._num_windows += 1

    def window_closed(self) -> None:
        """The window is closed, with a result or without."""
        if self._window_opened is not None:
            self.seconds += monotonic() - self._window_opened
            self._window_opened = None

    def window_discarded(self) -> None:
        """The window that was opened last had no recorded step: it does not count."""
        self._num_windows = max(0, self._num_windows - 1)

    def window_written(self, num_bytes: int, seconds: float) -> None:
        """A window's files take so much, and writing them took so long."""
        self.num_bytes += num_bytes
        self.seconds += seconds

    def refusal(self, reason: Reason) -> str:
        """Why there is to be no window for `reason`: a sentence, or "" where there may be one."""
        options = self._options
        if self.num_bytes >= options.max_megabytes * _MEGABYTE:
            return f"the windows' files take {self.num_bytes // _MEGABYTE} MB (max_megabytes={options.max_megabytes})"
        if reason.kind == "demand":
            return ""
        if self._num_windows >= options.max_windows:
            return f"there have been {self._num_windows} windows (max_windows={options.max_windows})"
        if reason.kind == "schedule" and options.every is None:  # so many, and no more, are asked for by number
            return ""
        wall = monotonic() - self._run_began if self._run_began is not None else 0.0
        if wall > 0 and self.seconds > options.max_share * wall:
            share = self.seconds / wall
            return f"profiling has taken {share:.1%} of the run's time (max_share={options.max_share})"
        return ""
