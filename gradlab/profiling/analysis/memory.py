"""Memory by module: what a forward leaves allocated when it returns, and how much more it needed on the way.

Belongs here: the allocations that a window recorded. Does not: the allocator's own counters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from gradlab.profiling.analysis.account import Call
from gradlab.profiling.analysis.events import Allocation, chosen_device


class Memory(NamedTuple):
    """What one forward of a module does to memory, submodules included, bytes."""

    retained_bytes: int
    """Allocated when it returns beyond what was allocated when it began, mean over its calls: mostly activations."""
    peak_bytes: int
    """The most that was allocated at once beyond what was allocated when it began, largest over its calls."""


def memory_by_module(allocations: Sequence[Allocation], calls: Iterable[Call]) -> dict[str, Memory]:
    """The memory of each module by the name of its mark; empty where allocations were not recorded.

    Where anything was allocated on a device, the device's memory; else the host's.
    Cost: about a microsecond an allocation, times the depth of the modules around it.
    """
    device = chosen_device(allocations)
    changes = [change for change in allocations if change.device == device]
    if not changes:
        return {}
    times = [change.time for change in changes]
    allocated = [0, *accumulate(change.num_bytes for change in changes)]  # [i]: before the i-th change
    grown: dict[str, list[int]] = {}
    peaks: dict[str, int] = {}
    for call in calls:
        first, last = bisect_left(times, call.start), bisect_left(times, call.end)
        before = allocated[first]
        grown.setdefault(call.mark, []).append(allocated[last] - before)
        peaks[call.mark] = max(peaks.get(call.mark, 0), max(allocated[first : last + 1]) - before)
    return {mark: Memory(round(sum(kept) / len(kept)), peaks[mark]) for mark, kept in grown.items()}
