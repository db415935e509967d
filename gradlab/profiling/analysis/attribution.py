"""attribute: whose time it was, of the host and of the device, from the events of a window.

Belongs here: which events are the host's, which the device's, and the device's part. Does not: the host's part
(host_timeline.py), the causes of idle time (idle.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradlab.profiling.analysis.attributed_times import AttributedTimes, Owner
from gradlab.profiling.analysis.events import Event, ProfiledModule, Span
from gradlab.profiling.analysis.host_timeline import HostTimeline, Launcher
from gradlab.profiling.analysis.idle import idle_gaps
from gradlab.profiling.analysis.kernels import HOST_COLLECTIVES, is_collective

_DRIVER = ("cuda", "cuLaunch", "cuMem", "cuStream", "cuEvent", "hip")


def attribute(events: Iterable[Event], steps: Iterable[int], modules: Mapping[str, ProfiledModule]) -> AttributedTimes:
    """Credit the time of `steps` to modules and phases.

    Args:
        events: all events of a window.
        steps: the steps that were recorded from beginning to end.
        modules: the module behind each range's name.
    Cost: about 3 microseconds an event.
    """
    host, on_device, driver = [], [], []
    for event in events:
        if event.on_device:
            on_device.append(event)
        elif event.launched_by or event.name.startswith(_DRIVER):
            driver.append(event)
        else:
            host.append(event)
    timeline = HostTimeline(steps, modules)
    timeline.attribute(host, keep_launchers=bool(on_device))
    times = timeline.times
    collectives = [event for event in host if event.name.startswith(HOST_COLLECTIVES)]
    collectives += [event for event in on_device if is_collective(event.name)]
    times.collectives = _covered(collectives, *times.span)
    if on_device:
        _attribute_device(timeline, on_device, driver)
    return times


def _attribute_device(timeline: HostTimeline, on_device: list[Event], driver: list[Event]) -> None:
    """Add the device's part to the times of a timeline that is complete."""
    times = timeline.times
    for event in on_device:
        _credit_kernel(times, event, timeline.launchers.get(event.launched_by))
    times.device_busy = _covered(on_device, *times.span)
    theirs = [event for event in on_device if not _is_own(timeline.launchers.get(event.launched_by))]
    times.own_device = times.device_busy - _covered(theirs, *times.span)
    others = [event for event in on_device if not is_collective(event.name)]
    times.exposed_collectives = times.device_busy - _covered(others, *times.span)
    for gap in idle_gaps(on_device, driver, timeline.data_spans, times.span):
        launcher = timeline.launchers.get(gap.kernel.launched_by) if gap.kernel is not None else None
        path = launcher.owner.path if launcher is not None else ()
        times.gaps.append((gap, path[-1] if path else None))
    idle = [(gap.start, gap.end) for gap, _ in times.gaps]
    times.own_idle = _overlap(idle, times.own_spans)


def _is_own(launcher: Launcher | None) -> bool:
    """Whether gradlab's own work has launched a kernel."""
    return launcher is not None and launcher.is_own


def _overlap(ones: list[Span], others: list[Span]) -> int:
    """How many nanoseconds lie in a span of each list; both are in order, and their spans apart from each other."""
    total, place = 0, 0
    for start, end in ones:
        while place < len(others) and others[place][1] <= start:
            place += 1
        at = place
        while at < len(others) and others[at][0] < end:
            total += min(end, others[at][1]) - max(start, others[at][0])
            at += 1
    return total


def _credit_kernel(times: AttributedTimes, event: Event, launcher: Launcher | None) -> None:
    """Credit a kernel to the owner of the operator that launched it; not at all where it is of no recorded step."""
    time = event.end - event.start
    if launcher is not None and launcher.is_own:
        times.device[launcher.owner] += time
        return
    if launcher is not None:
        times.device[launcher.owner] += time
        times.operators[launcher.operator].device += time
        times.kernels[event.name].operators[launcher.operator] += 1
    elif times.span[0] <= event.start < times.span[1]:
        times.device[Owner("other")] += time
    else:
        return
    times.kernels[event.name].calls += 1
    times.kernels[event.name].time += time


def _covered(events: Iterable[Event], start: int, end: int) -> int:
    """How many nanoseconds between `start` and `end` lie in at least one event."""
    covered, reached = 0, start
    for event in sorted(events, key=lambda event: event.start):
        last = min(event.end, end)
        covered += max(0, last - max(event.start, reached))
        reached = max(reached, last)
    return covered
