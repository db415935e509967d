"""PhaseClock: the time of a step split into phases that never overlap, on the host's clock and on the device's.

Belongs here: the bookkeeping of nested phases. Does not: who says when a phase begins (loop_hooks.py in a plain loop,
`gradlab.lightning.phases` in Lightning), and the scalars that are made of the times (metrics.py).
"""

from __future__ import annotations

from collections import deque
from time import perf_counter_ns
from typing import Any, NamedTuple

import torch

from gradlab.perf.phases import DEVICE_PHASES, PHASES, Phase, StepTimes

_NO_TIME: dict[Phase, int] = dict.fromkeys(PHASES, 0)


class PhaseClock:
    """Credits every instant to the innermost open phase. Cost: half a microsecond a call on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device_clock = _DeviceClock(device) if device.type == "cuda" else None
        self._outer_phases: list[Phase] = []
        self._phase: Phase = "other"
        self._host_times = _NO_TIME.copy()
        self._credited_until = self._step_began = perf_counter_ns()
        self.data_ns = 0
        """How much of the last step was waiting for data."""

    def enter(self, phase: Phase) -> None:
        """A phase begins, inside the one that is open."""
        self._credit()
        self._outer_phases.append(self._phase)
        self._switch_to(phase)

    def leave(self) -> None:
        """The innermost phase ends."""
        if self._outer_phases:
            self._credit()
            self._switch_to(self._outer_phases.pop())

    def set_default(self, phase: Phase) -> None:
        """From now on, time in which no phase is open counts as `phase`; each step begins with `other`."""
        if self._outer_phases:
            self._outer_phases[0] = phase
        elif self._phase != phase:
            self._credit()
            self._switch_to(phase)

    def restart(self) -> None:
        """Forget the step under way: another begins here."""
        self._close_phases()
        self._host_times = _NO_TIME.copy()
        self._credited_until = self._step_began = perf_counter_ns()
        if self._device_clock is not None:
            self._device_clock.restart()

    def end_step(self, step: int, *, keep_open: bool = False) -> list[StepTimes]:
        """End a step, and every open phase with it unless `keep_open`.

        Returns the steps whose times have become known: on the host this one, on a device those that it has finished.
        """
        self._credit()
        if not keep_open:
            self._close_phases()
        times = StepTimes(step, self._credited_until - self._step_began, self._host_times)
        self.data_ns = self._host_times["data"]
        self._host_times = _NO_TIME.copy()
        self._step_began = self._credited_until
        if self._device_clock is None:
            return [times]
        self._device_clock.end_step(times, self._phase)
        return self._device_clock.finished_steps()

    def _close_phases(self) -> None:
        self._outer_phases.clear()
        self._phase = "other"

    def _credit(self) -> None:
        """Credit the time since the last call to the open phase."""
        now = perf_counter_ns()
        self._host_times[self._phase] += now - self._credited_until
        self._credited_until = now

    def _switch_to(self, phase: Phase) -> None:
        self._phase = phase
        if self._device_clock is not None:
            self._device_clock.switch_to(phase)


class _PhaseStart(NamedTuple):
    """Where, in the device's queue, the work of a phase begins."""

    phase: Phase
    event: Any


class _QueuedStep(NamedTuple):
    """A step that the host has ended and the device perhaps not."""

    times: StepTimes
    starts: list[_PhaseStart]
    end: Any

    def is_finished(self) -> bool:
        """Whether the device has passed all events of the step, which may be on several streams."""
        return self.end.query() and all(start.event.query() for start in self.starts)


class _DeviceClock:
    """CUDA events where the work of one phase ends and that of another begins, read when the device has passed them.

    Nothing waits: `query` only asks. Events are used again, since making one costs more than recording it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spare_events: list[Any] = []
        self._starts: list[_PhaseStart] = []
        self._queued_steps: deque[_QueuedStep] = deque()

    def switch_to(self, phase: Phase) -> None:
        """Work that is queued from here on belongs to `phase`."""
        phase = _device_phase(phase)
        if not self._starts or self._starts[-1].phase != phase:
            self._starts.append(_PhaseStart(phase, self._record_event()))

    def end_step(self, times: StepTimes, phase: Phase) -> None:
        """End a step of which the host's times are known; the next one begins in `phase`."""
        end = self._record_event()
        self._queued_steps.append(_QueuedStep(times, self._starts, end))
        self._starts = [_PhaseStart(_device_phase(phase), end)]

    def restart(self) -> None:
        """Forget the step under way."""
        self._starts = []

    def finished_steps(self) -> list[StepTimes]:
        """The steps that the device has finished, oldest first."""
        finished = []
        while self._queued_steps and self._queued_steps[0].is_finished():
            queued = self._queued_steps.popleft()
            finished.append(_with_device_times(queued))
            # The event at the end is the next step's first one: it is still in use.
            self._spare_events += [start.event for start in queued.starts]
        return finished

    def _record_event(self) -> Any:
        event = self._spare_events.pop() if self._spare_events else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _device_phase(phase: Phase) -> Phase:
    return phase if phase in DEVICE_PHASES else "other"


def _with_device_times(queued: _QueuedStep) -> StepTimes:
    """The host's times of a finished step, with the device's own for the phases that are work for it."""
    times = queued.times
    phases = dict(times.phases) | dict.fromkeys(DEVICE_PHASES, 0)
    ends = [start.event for start in queued.starts[1:]] + [queued.end]
    for (phase, begin), end in zip(queued.starts, ends, strict=True):
        if phase in DEVICE_PHASES:
            phases[phase] += round(begin.elapsed_time(end) * 1e6)
    phases["other"] = max(0, times.total - sum(time for phase, time in phases.items() if phase != "other"))
    return StepTimes(times.step, times.total, phases)
