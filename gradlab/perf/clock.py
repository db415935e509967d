"""PhaseClock: the time of a step, split into phases that never overlap, on the host's clock and on the device's.

Belongs here: the bookkeeping of nested phases. Does not: who says when a phase begins (loop.py, or Lightning's own
action names), and what is made of the times (performance.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any, Literal, NamedTuple

import torch

Phase = Literal["data", "h2d", "forward", "loss", "backward", "optimizer", "callbacks", "other"]
PHASES: tuple[Phase, ...] = ("data", "h2d", "forward", "loss", "backward", "optimizer", "callbacks", "other")
_NOTHING: dict[Phase, int] = dict.fromkeys(PHASES, 0)
ON_DEVICE: frozenset[Phase] = frozenset({"h2d", "forward", "loss", "backward", "optimizer"})
"""The phases that are work for the device, where there is one."""


class StepTimes(NamedTuple):
    """The time of one step by phase, nanoseconds. On a device its phases may overlap the host's."""

    step: int
    total: int
    """From the end of the step before to the end of this one, on the host."""
    phases: Mapping[Phase, int]


class PhaseClock:
    """Credits every instant to the innermost phase that is open. Cost: half a microsecond a call on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = _DeviceClock(device) if device.type == "cuda" else None
        self._outer: list[Phase] = []
        self._now: Phase = "other"
        self._host = _NOTHING.copy()
        self._since = self._began = perf_counter_ns()
        self.data_ns = 0
        """How much of the last step was waiting for data."""

    def enter(self, phase: Phase) -> None:
        """A phase begins, inside the one that is open."""
        self._account()
        self._outer.append(self._now)
        self._go(phase)

    def leave(self) -> None:
        """The innermost phase ends."""
        if self._outer:
            self._account()
            self._go(self._outer.pop())

    def rest(self, phase: Phase) -> None:
        """What is in no phase counts as `phase` from now on."""
        if self._outer:
            self._outer[0] = phase
        elif self._now != phase:
            self._account()
            self._go(phase)

    def restart(self) -> None:
        """Forget the step under way: another begins here."""
        self._outer.clear()
        self._now = "other"
        self._forget()

    def end_step(self, step: int, *, keep_open: bool = False) -> list[StepTimes]:
        """A step ends, and every phase with it unless `keep_open`. The steps whose times are known by now."""
        self._account()
        if not keep_open:
            self._outer.clear()
            self._now = "other"
        times = StepTimes(step, self._since - self._began, self._host)
        self.data_ns = self._host["data"]
        self._host = _NOTHING.copy()
        self._began = self._since
        if self._device is None:
            return [times]
        self._device.end_step(times, self._now)
        return self._device.known()

    def _forget(self) -> None:
        self._host = _NOTHING.copy()
        self._since = self._began = perf_counter_ns()
        if self._device is not None:
            self._device.restart()

    def _account(self) -> None:
        now = perf_counter_ns()
        self._host[self._now] += now - self._since
        self._since = now

    def _go(self, phase: Phase) -> None:
        self._now = phase
        if self._device is not None:
            self._device.turn(phase)


class _DeviceClock:
    """CUDA events where one kind of work for the device ends and another begins, read when the device has passed them.

    Nothing waits: `query` only asks. Events are used again, since making one costs more than recording it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spare: list[Any] = []
        self._marks: list[tuple[Phase, Any]] = []
        self._pending: deque[tuple[StepTimes, list[tuple[Phase, Any]], Any]] = deque()

    def turn(self, phase: Phase) -> None:
        """From here in the device's queue on, work belongs to `phase`."""
        kind: Phase = phase if phase in ON_DEVICE else "other"
        if not self._marks or self._marks[-1][0] != kind:
            self._marks.append((kind, self._record()))

    def end_step(self, times: StepTimes, phase: Phase) -> None:
        end = self._record()
        self._pending.append((times, self._marks, end))
        self._marks = [(phase if phase in ON_DEVICE else "other", end)]

    def restart(self) -> None:
        self._marks = []

    def known(self) -> list[StepTimes]:
        """The steps that the device has finished, oldest first."""
        found = []
        while self._pending and self._is_past(*self._pending[0][1:]):
            times, marks, end = self._pending.popleft()
            found.append(_with_device(times, marks, end))
            # The event at the end is the next step's first mark.
            self._spare += [event for _, event in marks]
        return found

    @staticmethod
    def _is_past(marks: list[tuple[Phase, Any]], end: Any) -> bool:
        return end.query() and all(event.query() for _, event in marks)  # they may be on several streams

    def _record(self) -> Any:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _with_device(times: StepTimes, marks: list[tuple[Phase, Any]], end: Any) -> StepTimes:
    """The host's times, with the device's own for the phases that are work for it."""
    phases = dict(times.phases)
    for phase in ON_DEVICE:
        phases[phase] = 0
    ends = [event for _, event in marks[1:]] + [end]
    for (phase, begin), finish in zip(marks, ends, strict=True):
        if phase in ON_DEVICE:
            phases[phase] += round(begin.elapsed_time(finish) * 1e6)
    phases["other"] = max(0, times.total - sum(time for phase, time in phases.items() if phase != "other"))
    return StepTimes(times.step, times.total, phases)
