"""Reads what kineto, the recorder inside torch.profiler, has recorded into the records of `analysis/events.py`.

Belongs here: everything that reads torch's `_ProfilerResult`. Does not: what is made of the records. Never
`key_averages()` or `events()` of torch.profiler: those cost about fifty times more per event.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch._C._profiler import _EventType

from gradlab.profiling.analysis.events import Allocation, Event, WindowEvents
from gradlab.profiling.persistent_memory import name_of_device
from gradlab.profiling.recording import RecordedWindow

_CPU = torch._C._autograd.DeviceType.CPU
_MEMORY = "[memory]"
_PYTHON = re.compile(r".*\(\d+\): |<built-in |nn\.Module: ")
"""How torch names Python's frames, for a torch whose events do not say that they are one."""


def read_window(recorded: RecordedWindow) -> WindowEvents:
    """The records of a window, as the analysis takes them. Cost: about 5 microseconds an event."""
    # Asking for a device's name would initialize CUDA in a process that does not use it.
    device_name = torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
    return WindowEvents(
        events=read_events(recorded.results),
        allocations=read_allocations(recorded.results) if recorded.with_memory else (),
        steps=recorded.steps,
        modules=recorded.modules,
        memory_before=recorded.memory_before,
        memory_after=recorded.memory_after,
        expects_kernels=recorded.expects_kernels,
        num_parameters=recorded.num_parameters,
        device_name=device_name,
        torch_version=torch.__version__,
    )


def read_events(results: Any) -> list[Event]:
    """The events of torch's `_ProfilerResult` but for changes of memory and the copies that ranges have on a device.

    Also without the frames of Python that stacks add: they are the same time once more, and a range begins in the
    frame of its own `__enter__`, which it outlives. So a window with stacks has the same summary as one without.

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
    unread, allocations = list(results.experimental_event_tree()), []
    while unread:
        event = unread.pop()
        unread.extend(event.children)
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            device = name_of_device(fields.device)
            allocations.append(Allocation(event.start_time_ns, fields.ptr, fields.alloc_size, device))
    return sorted(allocations)
