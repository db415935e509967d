"""Memory of a window: by module, and by category at its peak.

Belongs here: what follows from the allocations that were recorded. Does not: the allocator's own counters
(`gradlab.perf.telemetry`).

By module: what a forward leaves allocated when it returns, and how much more it needed on the way. By category:
parameters, gradients and optimizer state of before and after the window are known by address. What was allocated
within it is classified by when that was and how long it stayed: a block of the forward that is still there when the
backward begins is an activation, a block of the backward that outlives it a gradient, all others temporaries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from gradlab.profiling.analysis.attributed_times import AttributedTimes, ModuleCall
from gradlab.profiling.analysis.events import CATEGORIES, Allocation, Category, PersistentBlock, PersistentMemory, Span


class ModuleMemory(NamedTuple):
    """What one forward of a module does to memory, submodules included, bytes."""

    retained_bytes: int
    """Allocated when it returns beyond what was allocated when it began, mean over its calls: mostly activations."""
    peak_bytes: int
    """The most that was allocated at once beyond what was allocated when it began, largest over its calls."""


def memory_by_module(allocations: Sequence[Allocation], calls: Iterable[ModuleCall]) -> dict[str, ModuleMemory]:
    """The memory of each module by its range's name; empty where allocations were not recorded.

    Where anything was allocated on a device, the device's memory; else the host's.
    Cost: about a microsecond an allocation, times the depth of the modules around it.
    """
    device = _busiest_device(allocations)
    changes = [change for change in allocations if change.device == device]
    if not changes:
        return {}
    times = [change.time for change in changes]
    allocated = [0, *accumulate(change.num_bytes for change in changes)]  # [i]: before the i-th change
    growths: dict[str, list[int]] = {}
    peaks: dict[str, int] = {}
    for call in calls:
        first, last = bisect_left(times, call.start), bisect_left(times, call.end)
        before = allocated[first]
        growths.setdefault(call.range_name, []).append(allocated[last] - before)
        peaks[call.range_name] = max(peaks.get(call.range_name, 0), max(allocated[first : last + 1]) - before)
    return {name: ModuleMemory(round(sum(growth) / len(growth)), peaks[name]) for name, growth in growths.items()}


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """The highest point of a device's memory in the recorded steps."""

    device: str
    step: int
    num_bytes: int
    categories: Mapping[Category, int]


def peak_by_category(
    allocations: Sequence[Allocation], before: PersistentMemory, after: PersistentMemory, times: AttributedTimes
) -> PeakMemory | None:
    """The peak inside the recorded steps; None where nothing was allocated.

    Where anything was allocated on another device than the CPU, that device's (the busiest one's) memory.

    Args:
        allocations: those of the window, in order of time.
        before: the persistent memory when it began.
        after: the persistent memory when it ended.
        times: when steps, backwards and optimizers ran.
    """
    if not allocations or not times.step_spans:
        return None
    device = _busiest_device(allocations)
    here = [allocation for allocation in allocations if allocation.device == device]
    levels: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
    live: dict[int, PersistentBlock] = {}
    for address, block in before.items():
        if block.device == device:
            live[address] = block
            levels[block.category] += block.num_bytes
    unseen = _gradients_freed_unseen(here, before, after, device)
    peak: PeakMemory | None = None
    for change, category in zip(here, _categories(here, after, times), strict=True):
        gone = [change.address]
        if change.num_bytes > 0 and category == "gradients":
            gone += unseen
            unseen = []
        for address in gone:
            if address in live:
                old = live.pop(address)
                levels[old.category] -= old.num_bytes
        if change.num_bytes > 0:
            live[change.address] = PersistentBlock(device, change.num_bytes, category)
            levels[category] += change.num_bytes
        total, step = sum(levels.values()), _step_at(times, change.time)
        if step is not None and (peak is None or total > peak.num_bytes):
            peak = PeakMemory(device=device, step=step, num_bytes=total, categories=dict(levels))
    return peak


def _gradients_freed_unseen(
    changes: Sequence[Allocation], before: PersistentMemory, after: PersistentMemory, device: str
) -> list[int]:
    """Addresses of gradients from before the window that were freed unseen: the CPU's allocator reports no such frees.

    They make room for new ones, so they are taken to be gone when the first new gradient comes.
    """
    first = {change.address: change.num_bytes for change in reversed(changes)}
    kept = {address for address, block in after.items() if block.category == "gradients"}
    old = (address for address, block in before.items() if (block.device, block.category) == (device, "gradients"))
    # A block whose address is given out again was freed, though no free was recorded. One whose free was recorded is no
    # concern here.
    return [address for address in old if first.get(address, 0) > 0 or (address not in first and address not in kept)]


def _categories(changes: Sequence[Allocation], after: PersistentMemory, times: AttributedTimes) -> list[Category]:
    """The category of what each change allocated; of a change that frees, nothing that matters."""
    freed_at: list[int | None] = [None] * len(changes)
    open_at: dict[int, int] = {}
    for index, change in enumerate(changes):
        if change.num_bytes > 0:
            open_at[change.address] = index
        elif change.address in open_at:
            freed_at[open_at.pop(change.address)] = change.time
    backward_starts = [start for start, _ in times.backward_spans]
    found: list[Category] = []
    for change, freed in zip(changes, freed_at, strict=True):
        if freed is None and change.address in after:
            found.append(after[change.address].category)
        else:
            found.append(_category_by_lifetime(change.time, freed, backward_starts, times))
    return found


def _category_by_lifetime(
    born: int, freed: int | None, backward_starts: Sequence[int], times: AttributedTimes
) -> Category:
    """The category of memory that came at `born` and went at `freed`, None where it stayed."""
    last_backward = _last_backward(born, times)
    if _inside(born, times.backward_spans):
        return "gradients" if freed is None or freed > _gradients_used_at(last_backward, times) else "temporaries"
    # Before the last backward an optimizer's step may hold a closure with the whole forward in it.
    if born >= last_backward and _inside(born, times.optimizer_spans):
        return "temporaries"
    following = bisect_left(backward_starts, born)
    reaches_backward = following < len(backward_starts) and (freed is None or freed >= backward_starts[following])
    return "activations" if reaches_backward else "temporaries"


def _gradients_used_at(last_backward: int, times: AttributedTimes) -> int:
    """When what the backward has left is used: the beginning of the next optimizer's step, or the end of this step."""
    index = bisect_left(times.optimizer_spans, last_backward, key=lambda span: span[0])
    if index < len(times.optimizer_spans):
        return times.optimizer_spans[index][0]
    return next((step.end for step in times.step_spans if step.end >= last_backward), last_backward)


def _inside(time: int, spans: Sequence[Span]) -> bool:
    index = bisect_right(spans, time, key=lambda span: span[0]) - 1
    return index >= 0 and time < spans[index][1]


def _last_backward(time: int, times: AttributedTimes) -> int:
    """The end of the last backward node in the step of `time`."""
    index = bisect_right(times.step_spans, time, key=lambda step: step.start) - 1
    end = times.step_spans[index].end if index >= 0 else time
    index = bisect_left(times.backward_spans, end, key=lambda span: span[0]) - 1
    return times.backward_spans[index][1] if index >= 0 else time


def _step_at(times: AttributedTimes, time: int) -> int | None:
    index = bisect_right(times.step_spans, time, key=lambda step: step.start) - 1
    if index < 0 or time >= times.step_spans[index].end:
        return None
    return times.step_spans[index].step


def _busiest_device(allocations: Iterable[Allocation]) -> str:
    """The device with most allocations; the CPU where there were none on another."""
    devices = Counter(allocation.device for allocation in allocations if allocation.device != "cpu")
    return devices.most_common(1)[0][0] if devices else "cpu"
