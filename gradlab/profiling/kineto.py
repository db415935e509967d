"""The raw events of a window as plain records, read once.

Never `key_averages()` or `events()` of torch.profiler: those cost about fifty times more per event.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_CPU = torch._C._autograd.DeviceType.CPU
MEMORY = "[memory]"


class Event(NamedTuple):
    """One thing that happened: an operator, a range, a kernel on a device, or a change of allocated memory."""

    name: str
    start: int
    """Nanoseconds, on the clock that all events of the window share."""
    end: int
    thread: int
    on_device: bool
    sequence: int = -1
    """Of a forward operator: the number that its backward node will carry. -1 where there is none."""
    forward_thread: int = 0
    """Of a backward node: the thread whose sequence numbers it carries. 0 where there is none."""
    correlation: int = 0
    """Of an operator: its own number."""
    launched_by: int = 0
    """Of a kernel or a call into the device's driver: the number of the operator that made it."""
    num_bytes: int = 0
    """Of a change of memory: what was allocated, negative where it was freed."""


def read_events(results: Any) -> list[Event]:
    """All events of torch's `_ProfilerResult` but the shadows that ranges throw on a device. Cost: 4 us an event."""
    events = []
    for event in results.events():
        on_device = event.device_type() != _CPU
        if on_device and event.is_user_annotation():
            continue
        name, start = event.name(), event.start_ns()
        events.append(
            Event(
                name,
                start,
                start + event.duration_ns(),
                event.start_thread_id(),
                on_device,
                event.sequence_nr(),
                event.fwd_thread_id(),
                event.correlation_id(),
                event.linked_correlation_id(),
                event.nbytes() if name == MEMORY else 0,
            )
        )
    return events
