"""summary.json: a window in numbers that need no trace viewer, and the verdict on it.

Belongs here: the layout of that file, which the board reads. Does not: how the numbers are found (attribution.py,
memory.py, verdict.py), and the file itself (`gradlab.profiling.writer`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gradlab.errors import ProfileError
from gradlab.perf.phases import Phase
from gradlab.profiling.analysis.attributed_times import TRACED_PHASES, AttributedTimes, Owner
from gradlab.profiling.analysis.attribution import attribute
from gradlab.profiling.analysis.events import ProfiledModule, WindowEvents
from gradlab.profiling.analysis.idle import CAUSES
from gradlab.profiling.analysis.kernels import DENSE_OPERATORS, is_collective, is_copy, is_dense, uses_tensor_cores
from gradlab.profiling.analysis.memory import ModuleMemory, PeakMemory, memory_by_module, peak_by_category
from gradlab.profiling.analysis.verdict import Shares, judge

SCHEMA = 2
"""The schema of summary.json that is written and read here; docs/profile.md describes it."""
TOP_OPERATORS = TOP_KERNELS = 20
TOP_GAPS = 10

NO_KERNELS = (
    "no kernels were recorded although the model is on a GPU, so device times are missing: CUPTI is absent or may not "
    "be used (`gradlab doctor`; nvidia.com/ERR_NVGPUCTRPERM)."
)


def summarize(window: WindowEvents, *, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """A window as the plain dictionary that summary.json holds; docs/profile.md describes every key.

    Cost: about 4 microseconds an event, in the background.
    """
    attributed = attribute(window.events, window.steps, window.modules)
    memory = memory_by_module(window.allocations, attributed.calls)
    peak = peak_by_category(window.allocations, window.memory_before, window.memory_after, attributed)
    summary = _describe(window, attributed, memory, peak, rank=rank, world_size=world_size)
    if window.expects_kernels and not attributed.device:
        summary["notes"].append(NO_KERNELS)
    return summary


def _describe(
    window: WindowEvents,
    attributed: AttributedTimes,
    memory: Mapping[str, ModuleMemory],
    peak: PeakMemory | None,
    *,
    rank: int,
    world_size: int,
) -> dict[str, Any]:
    """Attributed times and memory as the dictionary of `summarize`."""
    num_steps = len(attributed.steps)
    if num_steps == 0:
        raise ProfileError("the window holds none of its own step marks: another profiler took its events away.")
    steps = [_step_row(step, phases) for step, phases in attributed.steps.items()]
    mean = {key: sum(row[key] for row in steps) / num_steps for key in steps[0] if key != "step"}
    return {
        "schema": SCHEMA,
        "torch": window.torch_version,
        "rank": rank,
        "world_size": world_size,
        "reason": {"kind": "schedule", "detail": ""},
        "steps": steps,
        "mean": mean,
        "modules": _module_rows(attributed, window.modules, memory),
        "unattributed": {
            "forward_ms": _ms(attributed.host.get(Owner("forward"), 0), num_steps),
            "backward_ms": _ms(attributed.host.get(Owner("backward"), 0), num_steps),
            "device_ms": _ms(sum(time for owner, time in attributed.device.items() if not owner.path), num_steps),
        },
        "operators": _operator_rows(attributed, num_steps),
        "kernels": _kernel_rows(attributed, num_steps),
        "device": _device(attributed, window),
        "memory": _memory(peak),
        "collectives_ms": _ms(attributed.collectives, num_steps),
        "gradlab_ms": _ms(attributed.own, num_steps),
        "ranks": None,
        "verdict": _verdict(attributed, mean, window.num_parameters),
        "notes": [],
    }


def _ms(nanoseconds: float, num_steps: int = 1) -> float:
    return nanoseconds / num_steps / 1e6


def _step_row(step: int, phases: Mapping[Phase, int]) -> dict[str, float]:
    return {"step": step, "ms": _ms(sum(phases.values()))} | {
        f"{phase}_ms": _ms(phases[phase]) for phase in TRACED_PHASES
    }


def _module_rows(
    attributed: AttributedTimes, modules: Mapping[str, ProfiledModule], memory: Mapping[str, ModuleMemory]
) -> list[dict[str, Any]]:
    num_steps = len(attributed.steps)
    num_calls = Counter(call.range_name for call in attributed.calls)
    host, device = _by_module(attributed.host), _by_module(attributed.device)
    rows = []
    for name in num_calls | host | device:
        used = memory.get(name)
        row: dict[str, Any] = {"name": modules[name].name, "kind": modules[name].kind}
        row["calls"] = num_calls[name] / num_steps
        for prefix, times in (("", host), ("device_", device)):
            for key in ("forward", "forward_self", "backward", "backward_self"):
                row[f"{prefix}{key}_ms"] = _ms(times[name][key] if name in times else 0, num_steps)
        row["retained_bytes"] = used.retained_bytes if used else None
        row["peak_bytes"] = used.peak_bytes if used else None
        rows.append(row)
    return rows


def _by_module(times: Mapping[Owner, int]) -> dict[str, Counter[str]]:
    """For each module, by its range's name: its own time by phase, and with the modules inside it."""
    modules: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for owner, time in times.items():
        for name in set(owner.path):
            modules[name][owner.phase] += time
        for name in owner.path[-1:]:
            modules[name][f"{owner.phase}_self"] += time
    return modules


def _operator_rows(attributed: AttributedTimes, num_steps: int) -> list[dict[str, Any]]:
    by_cost = sorted(attributed.operators.items(), key=lambda item: item[1].device + item[1].host_self, reverse=True)
    return [
        {
            "name": name,
            "calls": operator.calls / num_steps,
            "host_self_ms": _ms(operator.host_self, num_steps),
            "device_ms": _ms(operator.device, num_steps),
        }
        for name, operator in by_cost[:TOP_OPERATORS]
    ]


def _kernel_rows(attributed: AttributedTimes, num_steps: int) -> list[dict[str, Any]]:
    by_cost = sorted(attributed.kernels.items(), key=lambda item: item[1].time, reverse=True)
    return [
        {
            "name": name,
            "operator": kernel.operators.most_common(1)[0][0] if kernel.operators else None,
            "calls": kernel.calls / num_steps,
            "ms": _ms(kernel.time, num_steps),
            "tensor_cores": uses_tensor_cores(name),
        }
        for name, kernel in by_cost[:TOP_KERNELS]
    ]


def _device(attributed: AttributedTimes, window: WindowEvents) -> dict[str, Any] | None:
    if not attributed.device:
        return None
    num_steps = len(attributed.steps)
    copies, computing, in_tensor_cores = _kernel_times(attributed)
    return {
        "name": window.device_name,
        "busy_share": _share_of_span(attributed.device_busy, attributed),
        "ms": _ms(sum(attributed.device.values()), num_steps),
        "tensor_core_share": in_tensor_cores / computing if computing else 0.0,
        "copies_ms": _ms(copies, num_steps),
        "collectives_ms": _ms(attributed.collectives, num_steps),
        "idle": _idle(attributed, window.modules),
    }


def _share_of_span(nanoseconds: int, attributed: AttributedTimes) -> float:
    start, end = attributed.span
    return nanoseconds / (end - start)


def _kernel_times(attributed: AttributedTimes) -> tuple[int, int, int]:
    """Nanoseconds of copies and fills, of kernels that compute, and of those of them that use tensor cores."""
    copies = computing = in_tensor_cores = 0
    for name, kernel in attributed.kernels.items():
        if is_copy(name):
            copies += kernel.time
        elif not is_collective(name):
            computing += kernel.time
            in_tensor_cores += kernel.time if uses_tensor_cores(name) else 0
    return copies, computing, in_tensor_cores


def _idle(attributed: AttributedTimes, modules: Mapping[str, ProfiledModule]) -> dict[str, Any]:
    num_steps = len(attributed.steps)
    by_cause = attributed.idle_by_cause
    longest = sorted(attributed.gaps, key=lambda pair: pair[0].start - pair[0].end)[:TOP_GAPS]
    rows = [
        {
            "ms": _ms(gap.end - gap.start),
            "cause": gap.cause,
            "step": next((step.step for step in attributed.step_spans if gap.start < step.end), None),
            "before": gap.kernel.name if gap.kernel is not None else None,
            "module": modules[name].name if name is not None else None,
        }
        for gap, name in longest
    ]
    return {f"{cause}_ms": _ms(by_cause[cause], num_steps) for cause in CAUSES} | {"gaps": rows}


def _memory(peak: PeakMemory | None) -> dict[str, Any] | None:
    if peak is None:
        return None
    return {
        "device": peak.device,
        "peak_bytes": peak.num_bytes,
        "peak_step": peak.step,
        "categories": dict(peak.categories),
    }


def _verdict(attributed: AttributedTimes, mean: Mapping[str, float], num_parameters: int | None) -> dict[str, Any]:
    own_ms = _ms(attributed.own, len(attributed.steps))
    theirs_ms = max(mean["ms"] - own_ms, 1e-9)  # without what gradlab does in a step
    on_device = bool(attributed.device)
    idle = attributed.idle_by_cause
    shares = Shares(
        data=min(1.0, mean["data_ms"] / theirs_ms),
        overhead=_ms(attributed.overhead, len(attributed.steps)) / max(theirs_ms - mean["data_ms"], 1e-9),
        device_busy=_share_of_theirs(attributed.device_busy - attributed.own_device, attributed) if on_device else None,
        dense=_dense_share(attributed),
        sync=idle["sync"] / idle.total() if on_device and idle.total() else None,
        communication=_share_of_theirs(attributed.exposed_collectives, attributed) if on_device else None,
        gradlab=own_ms / mean["ms"],
    )
    found = judge(shares, step_ms=theirs_ms, largest=_largest_part(attributed), num_parameters=num_parameters)
    return found.record(asdict(shares))


def _share_of_theirs(nanoseconds: int, attributed: AttributedTimes) -> float:
    """A share of the span without the time in which the device did gradlab's work or waited for it."""
    start, end = attributed.span
    return nanoseconds / max(1, end - start - attributed.own_device - attributed.own_idle)


def _dense_share(attributed: AttributedTimes) -> float | None:
    """Of the computing time, that of operations whose arithmetic outgrows what they read and write."""
    if attributed.device:
        times = {name: kernel.time for name, kernel in attributed.kernels.items() if not is_collective(name)}
        dense = sum(time for name, time in times.items() if is_dense(name))
    else:
        long = ((name, kind) for name, kind in attributed.operators.items() if not kind.calls_are_short)
        times = {name: kind.host_self for name, kind in long}
        dense = sum(time for name, time in times.items() if DENSE_OPERATORS.match(name))
    total = sum(times.values())
    return dense / total if total else None


def _largest_part(attributed: AttributedTimes) -> tuple[str, float]:
    """The module, or the optimizer, with most of the computing time of its own, and its share of that time."""
    times = attributed.device or attributed.host
    parts: Counter[str] = Counter()
    for owner, time in times.items():
        if owner.phase not in ("data", "other"):
            parts[_part_name(owner)] += time
    (name, time), *_ = parts.most_common(1) or [("nothing", 0)]
    return name, time / max(1, parts.total())


def _part_name(owner: Owner) -> str:
    if owner.path:
        return owner.path[-1].partition(": ")[2]
    return "the optimizer" if owner.phase == "optimizer" else "code outside every module"
