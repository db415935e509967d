"""Makes the ranges of a trace nest: gradlab's own ranges are moved out of those that they intersect.

A range of gradlab may begin or end inside another one: a step of a loop written by hand ends in a hook that
`Optimizer.step` itself calls, and with Python's stacks each of them begins in the frame of its own `__enter__`. The
PyTorch Profiler tab drops what does not nest, and Perfetto draws it wrongly.

Belongs here: where such a range is moved to. Does not: what else is rewritten for the tab (trace_file.py). Summaries
are made from what was recorded, not from what is moved here.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from gradlab.profiling.analysis.events import DATA_WAIT, OWN_WORK, STEP, STEP_BODY, UNFINISHED_STEP

_RANGE_EVENT = re.compile(
    rb'"ph":\s*"X",\s*"cat":\s*"(cpu_op|user_annotation|python_function)",\s*"name":\s*"((?:[^"\\]|\\.)*)",'
    rb'\s*"pid":\s*\d+,\s*"tid":\s*(\d+),\s*"ts":\s*([\d.]+),\s*"dur":\s*([\d.]+)'
)
_STEPS = tuple(name.encode() for name in (STEP, UNFINISHED_STEP))
_STEP_BODY, _DATA_WAIT, _MODULE = STEP_BODY.encode(), DATA_WAIT.encode(), b"[pl][module]"
_OWN_WORK = OWN_WORK.encode()
_OPTIMIZER = b"Optimizer.step#"
_APART_NS = 4
"""Nanoseconds between the ends of two ranges. The tab adds microseconds since an epoch as floats, whose resolution
is one or two nanoseconds: ranges that end together may seem to intersect."""


class _Range:
    """A range of the host, in nanoseconds."""

    __slots__ = ("end", "kind", "match", "name", "start")

    def __init__(self, match: re.Match[bytes]) -> None:
        self.match = match
        self.kind, self.name = match[1], match[2]
        self.start, self.end = _recorded_times(match)

    @property
    def is_step(self) -> bool:
        return self.name.startswith(_STEPS)

    @property
    def is_own(self) -> bool:
        """Whether gradlab has recorded it."""
        return self.name in (_STEP_BODY, _DATA_WAIT) or self.name.startswith((*_STEPS, _MODULE))

    @property
    def is_annotation(self) -> bool:
        """Whether it is opened and closed in Python, anywhere; that around gradlab's own work is filed as an op."""
        return self.kind == b"user_annotation" or self.name == _OWN_WORK

    @property
    def is_moved(self) -> bool:
        return (self.start, self.end) != _recorded_times(self.match)


def nest_ranges(events: bytes) -> bytes:
    """The events of a Chrome trace, as kineto writes them, with gradlab's own ranges moved so that all nest.

    One that begins in a range and outlives it begins when that range ends. One that ends in a range which has begun
    inside it ends with that range or before it, or begins with it: whichever moves it least; but a step holds its
    optimizer to the end. With Python's stacks the ranges of `record_function` are moved likewise out of the frames in
    which they are opened and closed. What was still open when recording stopped ends there, the inner ones first.
    Every other range stays where it is.

    Cost: about 20 ms a megabyte.
    """
    threads: defaultdict[bytes, list[_Range]] = defaultdict(list)
    for match in _RANGE_EVENT.finditer(events):
        threads[match[3]].append(_Range(match))
    for ranges in threads.values():
        _nest(ranges)
    return _with_moved(events, [range_ for ranges in threads.values() for range_ in ranges if range_.is_moved])


def _nest(ranges: list[_Range]) -> None:
    """Move the ranges of one thread until they nest."""
    ranges.sort(key=lambda range_: (range_.start, -range_.end))
    frames = [range_ for range_ in ranges if range_.kind == b"python_function"]
    stop = max(range_.end for range_ in frames or ranges)
    for range_ in ranges:
        # Of what is open then, frames end a little earlier than ranges.
        range_.end = min(range_.end, max(stop, range_.start))
    own = [range_ for range_ in ranges if range_.is_own]
    movable = [range_ for range_ in own if range_.name != _STEP_BODY]
    if frames:
        annotations = [range_ for range_ in ranges if range_.is_annotation and not range_.is_own]
        _move_all(annotations, frames)
    _move_all(movable, [range_ for range_ in ranges if not range_.is_own])
    _keep_bodies_in_their_steps(own)
    _end_together(ranges, stop)


def _move_all(movable: Sequence[_Range], others: Iterable[_Range]) -> None:
    """Move each of `movable` out of those of `others` that it intersects; both by the time at which they begin."""
    around = _around(movable, others)
    steps = [range_ for range_ in movable if range_.is_step]
    latest = {id(step): after.end for step, after in pairwise(steps)}
    reached = 0
    for range_ in movable:
        _move(range_, around[range_.start], around[range_.end], latest=latest.get(id(range_)))
        if range_.is_step:
            range_.start = max(range_.start, reached)
            reached = range_.end = max(range_.end, range_.start)
            reached += _APART_NS


def _around(movable: Iterable[_Range], others: Iterable[_Range]) -> dict[int, list[_Range]]:
    """For each time at which one of `movable` begins or ends, those of `others` that are open then, outermost first."""
    times = sorted({time for range_ in movable for time in (range_.start, range_.end)})
    around: dict[int, list[_Range]] = {time: [] for time in times}
    for other in others:
        index = bisect_right(times, other.start)
        while index < len(times) and times[index] < other.end:
            around[times[index]].append(other)
            index += 1
    return around


def _move(range_: _Range, at_start: Iterable[_Range], at_end: Iterable[_Range], *, latest: int | None) -> None:
    """Move a range out of others.

    Args:
        range_: the range.
        at_start: those that are open where it begins, the outermost first.
        at_end: those that are open where it ends.
        latest: where the next step ends: a step is not drawn out over it.
    """
    start, end = range_.start, range_.end
    apart = _APART_NS if range_.is_own else 4 * _APART_NS  # after a step that ends there, and the next one that begins
    range_.start = next((other.end + apart for other in at_start if other.end < end), start)
    for other in at_end:
        if other.start <= range_.start:
            continue
        begin_with, end_before, end_with = other.start - start, end - other.start, other.end - end
        if latest is not None and other.end >= latest:
            end_with = max(begin_with, end_before)
        elif range_.is_step and other.name.startswith(_OPTIMIZER):
            end_with = 0
        if end_with <= min(begin_with, end_before):
            range_.end = other.end + 2 * _APART_NS
            break
        if end_before < begin_with:
            range_.end = other.start - _APART_NS
            break
        range_.start = other.start + _APART_NS
    range_.end = max(range_.end, range_.start)


def _keep_bodies_in_their_steps(own: Iterable[_Range]) -> None:
    """The body of a step that was moved begins and ends with it; its wait for data begins with it, and ends in it."""
    step = outer = None
    for range_ in own:
        if range_.is_step:
            step = outer = range_
        elif step is not None and outer is not None and range_.name in (_STEP_BODY, _DATA_WAIT):
            start, end = _recorded_times(step.match)
            if step.start != start:
                range_.start = step.start + (_APART_NS if range_.name == _STEP_BODY else 2 * _APART_NS)
            if range_.name == _STEP_BODY:
                outer = range_
                if step.end != end:
                    range_.end = step.end - _APART_NS
            elif range_.end > outer.end:
                range_.end = outer.end - _APART_NS
            range_.end = max(range_.end, range_.start)


def _end_together(ranges: Iterable[_Range], stop: int) -> None:
    """End what was still open when recording stopped, the inner ranges before the outer ones."""
    still_open = [range_ for range_ in ranges if range_.end >= stop > range_.start]
    if len(still_open) > 1:
        still_open.sort(key=lambda range_: (range_.start, -range_.end), reverse=True)
        for index, range_ in enumerate(still_open):
            range_.end = stop + index * _APART_NS


def _recorded_times(match: re.Match[bytes]) -> tuple[int, int]:
    start = _nanoseconds(match[4])
    return start, start + _nanoseconds(match[5])


def _nanoseconds(microseconds: bytes) -> int:
    whole, _, rest = microseconds.partition(b".")
    return int(whole) * 1000 + int(rest[:3].ljust(3, b"0"))


def _with_moved(events: bytes, moved: Iterable[_Range]) -> bytes:
    parts, reached = [], 0
    for range_ in sorted(moved, key=lambda range_: range_.match.start()):
        for group, time in ((4, range_.start), (5, range_.end - range_.start)):
            parts += [events[reached : range_.match.start(group)], b"%d.%03d" % divmod(time, 1000)]
            reached = range_.match.end(group)
    return b"".join((*parts, events[reached:]))
