"""Why a device was idle: each gap between its kernels, with the cause that the host's timeline gives.

Belongs here: gaps and causes. Does not: which module a gap is attributed to (attribution.py).

A gap ends with a kernel. Where the host launched that kernel before the gap began, it was in the queue and waited for
something else (`queue`). Else the host was late: because it waited for a batch (`data`), because it had waited for the
device itself, so that the queue had run empty (`sync`, as in `.item()`), or because it takes so long to launch
(`host`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from gradlab.profiling.analysis.events import Event, Span

Cause = Literal["data", "sync", "host", "queue"]
CAUSES: tuple[Cause, ...] = ("data", "sync", "host", "queue")

_SYNCHRONIZES = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cuStreamSynchronize")
_SYNCHRONIZES_HIP = ("hipDeviceSynchronize", "hipStreamSynchronize", "hipEventSynchronize")
_RETURN_NS = 20_000
"""How long after the device's last work a call that waited for it may take to return."""


class IdleGap(NamedTuple):
    """A time in which the device did nothing, nanoseconds."""

    start: int
    end: int
    cause: Cause
    kernel: Event | None
    """What ended it; None at the end of the window."""


def idle_gaps(events: Iterable[Event], calls: Iterable[Event], waits: Sequence[Span], span: Span) -> list[IdleGap]:
    """The gaps of a device inside `span`, split where their cause changes; all together are its idle time.

    Args:
        events: kernels, copies and fills.
        calls: the host's calls into the driver, which launched them.
        waits: when the host waited for data, in order and apart from each other.
        span: from the first recorded step to the end of the last.
    """
    calls = list(calls)
    launches = {call.correlation: call for call in calls if call.correlation}
    syncs = [call for call in calls if call.name.startswith(_SYNCHRONIZES + _SYNCHRONIZES_HIP)]
    sync_ends = sorted(call.end for call in syncs)
    gaps: list[IdleGap] = []
    reached = span[0]
    for event in sorted(events, key=lambda event: event.start):
        if event.start >= span[1]:
            gaps += _with_cause(reached, span[1], event, launches, waits, sync_ends)
            reached = span[1]
            break
        if event.start > reached:
            gaps += _with_cause(reached, event.start, event, launches, waits, sync_ends)
        reached = max(reached, event.end)
    if reached < span[1]:
        gaps += _with_cause(reached, span[1], None, launches, waits, sync_ends)
    return gaps


def _with_cause(
    start: int,
    end: int,
    event: Event | None,
    launches: Mapping[int, Event],
    waits: Sequence[Span],
    sync_ends: Sequence[int],
) -> list[IdleGap]:
    """The gap before `event`, cut where the host began or ended to wait for data."""
    if end <= start:
        return []
    launch = launches.get(event.correlation) if event is not None else None
    if event is not None and (launch is None or launch.start < start):
        return [IdleGap(start, end, "queue", event)]
    after = bisect_left(sync_ends, start - _RETURN_NS)
    was_sync = after < len(sync_ends) and sync_ends[after] <= min(end, start + _RETURN_NS)
    rest: Cause = "sync" if was_sync else "host"
    pieces, reached = [], start
    for wait_start, wait_end in waits[max(0, bisect_right(waits, (start, start)) - 1) :]:
        if wait_start >= end:
            break
        first, last = max(wait_start, reached), min(wait_end, end)
        if last <= first:
            continue
        if first > reached:
            pieces.append(IdleGap(reached, first, rest, event))
        pieces.append(IdleGap(first, last, "data", event))
        reached = last
    if reached < end:
        pieces.append(IdleGap(reached, end, rest, event))
    return pieces
