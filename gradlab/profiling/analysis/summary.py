"""summary.json: a window in numbers that need no trace viewer, and the verdict on it.

Belongs here: the layout of that file, which the board reads. Does not: how the numbers are found (attribution.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from gradlab.errors import ProfileError
from gradlab.profiling.analysis.account import PHASES, Attribution, Owner, Phase
from gradlab.profiling.analysis.attribution import attribute
from gradlab.profiling.analysis.categories import PeakMemory, peak_by_category
from gradlab.profiling.analysis.events import read_allocations, read_events
from gradlab.profiling.analysis.idle import CAUSES
from gradlab.profiling.analysis.kernels import DENSE_OPERATORS, is_collective, is_copy, is_dense, uses_tensor_cores
from gradlab.profiling.analysis.memory import Memory, memory_by_module
from gradlab.profiling.analysis.verdict import Shares, judge
from gradlab.profiling.files import SCHEMA
from gradlab.profiling.ranges import Module
from gradlab.profiling.recording import Recorded

TOP_OPERATORS = TOP_KERNELS = 20
TOP_GAPS = 10

_NO_KERNELS = (
    "no kernels were recorded although the model is on a GPU, so device times are missing: CUPTI is absent or may not "
    "be used (`gradlab doctor`; nvidia.com/ERR_NVGPUCTRPERM)."
)


def summarize(recorded: Recorded, *, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """A window as the plain dictionary that summary.json holds; docs/profile.md describes every key.

    Cost: about 10 microseconds an event, in the background.
    """
    events = read_events(recorded.results)
    attribution = attribute(events, recorded.steps, recorded.modules)
    allocations = read_allocations(recorded.results) if recorded.with_memory else []
    memory = memory_by_module(allocations, attribution.calls)
    peak = peak_by_category(allocations, recorded.before, recorded.after, attribution)
    summary = describe(attribution, recorded.modules, memory, peak, rank=rank, world_size=world_size)
    if recorded.expects_kernels and not attribution.device:
        summary["notes"].append(_NO_KERNELS)
    return summary


def describe(
    attribution: Attribution,
    modules: Mapping[str, Module],
    memory: Mapping[str, Memory],
    peak: PeakMemory | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Any]:
    """An attribution as the dictionary of `summarize`."""
    num_steps = len(attribution.steps)
    if num_steps == 0:
        raise ProfileError("the window holds none of its own step marks: another profiler took its events away.")
    steps = [_step_row(step, phases) for step, phases in attribution.steps.items()]
    mean = {key: sum(row[key] for row in steps) / num_steps for key in steps[0] if key != "step"}
    return {
        "schema": SCHEMA,
        "torch": torch.__version__,
        "rank": rank,
        "world_size": world_size,
        "reason": {"kind": "schedule", "detail": ""},
        "steps": steps,
        "mean": mean,
        "modules": _module_rows(attribution, modules, memory),
        "unattributed": {
            "forward_ms": _ms(attribution.host.get(Owner("forward"), 0), num_steps),
            "backward_ms": _ms(attribution.host.get(Owner("backward"), 0), num_steps),
            "device_ms": _ms(sum(time for owner, time in attribution.device.items() if not owner.path), num_steps),
        },
        "operators": _operator_rows(attribution, num_steps),
        "kernels": _kernel_rows(attribution, num_steps),
        "device": _device(attribution, modules),
        "memory": _memory(peak),
        "collectives_ms": _ms(attribution.collectives, num_steps),
        "ranks": None,
        "verdict": _verdict(attribution, mean),
        "notes": [],
    }


def _ms(nanoseconds: float, num_steps: int = 1) -> float:
    return nanoseconds / num_steps / 1e6


def _step_row(step: int, phases: Mapping[Phase, int]) -> dict[str, float]:
    return {"step": step, "ms": _ms(sum(phases.values()))} | {f"{phase}_ms": _ms(phases[phase]) for phase in PHASES}


def _module_rows(
    attribution: Attribution, modules: Mapping[str, Module], memory: Mapping[str, Memory]
) -> list[dict[str, Any]]:
    num_steps = len(attribution.steps)
    num_calls = Counter(call.mark for call in attribution.calls)
    host, device = _by_module(attribution.host), _by_module(attribution.device)
    rows = []
    for mark in num_calls | host | device:
        kept = memory.get(mark)
        row: dict[str, Any] = {"name": modules[mark].name, "kind": modules[mark].kind}
        row["calls"] = num_calls[mark] / num_steps
        for prefix, times in (("", host), ("device_", device)):
            for key in ("forward", "forward_self", "backward", "backward_self"):
                row[f"{prefix}{key}_ms"] = _ms(times[mark][key] if mark in times else 0, num_steps)
        row["retained_bytes"] = kept.retained_bytes if kept else None
        row["peak_bytes"] = kept.peak_bytes if kept else None
        rows.append(row)
    return rows


def _by_module(times: Mapping[Owner, int]) -> dict[str, Counter[str]]:
    """For each module's mark: its own time by phase, and with the modules inside it."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for owner, time in times.items():
        for mark in set(owner.path):
            found[mark][owner.phase] += time
        for mark in owner.path[-1:]:
            found[mark][f"{owner.phase}_self"] += time
    return found


def _operator_rows(attribution: Attribution, num_steps: int) -> list[dict[str, Any]]:
    by_cost = sorted(attribution.operators.items(), key=lambda item: item[1].device + item[1].host_self, reverse=True)
    return [
        {
            "name": name,
            "calls": operator.calls / num_steps,
            "host_self_ms": _ms(operator.host_self, num_steps),
            "device_ms": _ms(operator.device, num_steps),
        }
        for name, operator in by_cost[:TOP_OPERATORS]
    ]


def _kernel_rows(attribution: Attribution, num_steps: int) -> list[dict[str, Any]]:
    by_cost = sorted(attribution.kernels.items(), key=lambda item: item[1].time, reverse=True)
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


def _device(attribution: Attribution, modules: Mapping[str, Module]) -> dict[str, Any] | None:
    if not attribution.device:
        return None
    num_steps = len(attribution.steps)
    copies, computing, in_tensor_cores = _kernel_times(attribution)
    return {
        "name": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "busy_share": _share_of_span(attribution.device_busy, attribution),
        "ms": _ms(sum(attribution.device.values()), num_steps),
        "tensor_core_share": in_tensor_cores / computing if computing else 0.0,
        "copies_ms": _ms(copies, num_steps),
        "collectives_ms": _ms(attribution.collectives, num_steps),
        "idle": _idle(attribution, modules),
    }


def _share_of_span(nanoseconds: int, attribution: Attribution) -> float:
    start, end = attribution.span
    return nanoseconds / (end - start)


def _kernel_times(attribution: Attribution) -> tuple[int, int, int]:
    """Nanoseconds of copies and fills, of kernels that compute, and of those of them that use tensor cores."""
    copies = computing = in_tensor_cores = 0
    for name, kernel in attribution.kernels.items():
        if is_copy(name):
            copies += kernel.time
        elif not is_collective(name):
            computing += kernel.time
            in_tensor_cores += kernel.time if uses_tensor_cores(name) else 0
    return copies, computing, in_tensor_cores


def _idle(attribution: Attribution, modules: Mapping[str, Module]) -> dict[str, Any]:
    num_steps = len(attribution.steps)
    by_cause = Counter[str]()
    for gap, _ in attribution.gaps:
        by_cause[gap.cause] += gap.end - gap.start
    longest = sorted(attribution.gaps, key=lambda pair: pair[0].start - pair[0].end)[:TOP_GAPS]
    rows = [
        {
            "ms": _ms(gap.end - gap.start),
            "cause": gap.cause,
            "step": next((step for step, _, end in attribution.step_spans if gap.start < end), None),
            "before": gap.kernel.name if gap.kernel is not None else None,
            "module": modules[mark].name if mark is not None else None,
        }
        for gap, mark in longest
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


def _verdict(attribution: Attribution, mean: Mapping[str, float]) -> dict[str, Any]:
    computing = max(mean["ms"] - mean["data_ms"], 1e-9)
    on_device = bool(attribution.device)
    idle = sum(gap.end - gap.start for gap, _ in attribution.gaps)
    after_sync = sum(gap.end - gap.start for gap, _ in attribution.gaps if gap.cause == "sync")
    shares = Shares(
        data=mean["data_ms"] / mean["ms"],
        overhead=_ms(attribution.overhead, len(attribution.steps)) / computing,
        device_busy=_share_of_span(attribution.device_busy, attribution) if on_device else None,
        dense=_dense_share(attribution),
        sync=after_sync / idle if on_device and idle else None,
        communication=_share_of_span(attribution.exposed_collectives, attribution) if on_device else None,
    )
    return judge(shares, step_ms=mean["ms"], largest=_largest(attribution)).record(asdict(shares))


def _dense_share(attribution: Attribution) -> float | None:
    """Of the computing time, that of operations whose arithmetic outgrows what they read and write."""
    if attribution.device:
        times = {name: kernel.time for name, kernel in attribution.kernels.items() if not is_collective(name)}
        dense = sum(time for name, time in times.items() if is_dense(name))
    else:
        long = ((name, kind) for name, kind in attribution.operators.items() if not kind.calls_are_short)
        times = {name: kind.host_self for name, kind in long}
        dense = sum(time for name, time in times.items() if DENSE_OPERATORS.match(name))
    total = sum(times.values())
    return dense / total if total else None


def _largest(attribution: Attribution) -> tuple[str, float]:
    """The module, or the optimizer, with most of the computing time of its own, and its share of that time."""
    times = attribution.device or attribution.host
    parts: Counter[str] = Counter()
    for owner, time in times.items():
        if owner.phase not in ("data", "other"):
            parts[_part(owner)] += time
    (name, time), *_ = parts.most_common(1) or [("nothing", 0)]
    return name, time / max(1, parts.total())


def _part(owner: Owner) -> str:
    if owner.path:
        return owner.path[-1].partition(": ")[2]
    return "the optimizer" if owner.phase == "optimizer" else "code outside every module"
