"""The raw events of a window as plain records, read once.

Never `key_averages()` or `events()` of torch.profiler: those cost about fifty times more per event.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch._C._profiler import _EventType

_CPU = torch._C._autograd.DeviceType.CPU
_MEMORY = "[memory]"
_PYTHON = re.compile(r".*\(\d+\): |<built-in |nn\.Module: ")
"""How torch names Python's frames, for a torch whose events do not say that they are one."""


class Event(NamedTuple):
    """One thing that happened: an operator, a range, or a kernel on a device."""

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


class Allocation(NamedTuple):
    """A change of allocated memory, with its address."""

    time: int
    address: int
    num_bytes: int
    """Negative where memory was freed."""
    device: str


def read_events(results: Any) -> list[Event]:
    """All events of torch's `_ProfilerResult`, without changes of memory and the shadows that ranges throw on a device.

    Also without the frames of Python that stacks add: they are the same time once more, and a range begins in the
    frame of its own `__enter__`, which it outlives. So a window with stacks is told as one without.

    Cost: 4 microseconds an event.
    """
    events = []
    for event in results.events():
        name = event.name()
        if name == _MEMORY or _is_python(event):
            continue
        on_device = event.device_type() != _CPU
        if on_device and event.is_user_annotation():
            continue
        start = event.start_ns()
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
            )
        )
    return events


def _is_python(event: Any) -> bool:
    """Whether an event is a frame of Python, or a call from there into C."""
    known = getattr(event, "is_python_function", None)
    return known() if known is not None else _PYTHON.match(event.name()) is not None


def read_allocations(results: Any) -> list[Allocation]:
    """The changes of memory in torch's `_ProfilerResult` in order of time. Cost: 4 microseconds an event."""
    todo, found = list(results.experimental_event_tree()), []
    while todo:
        event = todo.pop()
        todo.extend(event.children)
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            found.append(Allocation(event.start_time_ns, fields.ptr, fields.alloc_size, device_name(fields.device)))
    return sorted(found)


def device_name(device: Any) -> str:
    """`cpu`, `cuda:0`: with the index, which torch leaves out where it is the current one."""
    return device.type if device.type == "cpu" else f"{device.type}:{max(0, device.index or 0)}"


def chosen_device(allocations: Iterable[Allocation]) -> str:
    """Whose memory is told of: that of the device with most allocations, the CPU's where there is no other."""
    devices = Counter(allocation.device for allocation in allocations if allocation.device != "cpu")
    return devices.most_common(1)[0][0] if devices else "cpu"
