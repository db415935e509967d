"""summary.json: a window in numbers that need no trace viewer, and the verdict on it.

Belongs here: the layout of that file, which the board reads. Does not: how the numbers are found (attribution.py).
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gradlab.errors import ProfileError
from gradlab.profiling.attribution import PHASES, Attribution, Owner, Phase, attribute
from gradlab.profiling.kineto import read_events
from gradlab.profiling.marks import Module
from gradlab.profiling.memory import Memory, memory_by_module
from gradlab.profiling.recording import Recorded
from gradlab.profiling.verdict import Shares, judge

SCHEMA = 1
TOP_OPERATORS = 20


def summarize(recorded: Recorded, *, rank: int = 0) -> dict[str, Any]:
    """A window as the plain dictionary that summary.json holds.

    `steps` lists each recorded step with its phases. Everything else is a mean per recorded step, in milliseconds:
    `mean` the phases, `modules` one row a module in the order of the first forward, `unattributed` what is in no
    module, `operators` the most expensive kinds. For host and device alike, the modules' `_self_ms` plus
    `unattributed` add up to the phase. Times of modules without `_self` include the modules inside. The model itself
    is the module named "". `device` is null where no device was used, memory null where it was not recorded.
    Cost: about 7 microseconds an event, in the background.
    """
    events = read_events(recorded.results)
    attribution = attribute(events, recorded.steps, recorded.modules)
    memory = memory_by_module(events, attribution.calls)
    return describe(attribution, recorded.modules, memory, rank=rank)


def describe(
    attribution: Attribution, modules: Mapping[str, Module], memory: Mapping[str, Memory], *, rank: int = 0
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
        "steps": steps,
        "mean": mean,
        "modules": _module_rows(attribution, modules, memory),
        "unattributed": {
            "forward_ms": _ms(attribution.host.get(Owner("forward"), 0), num_steps),
            "backward_ms": _ms(attribution.host.get(Owner("backward"), 0), num_steps),
            "device_ms": _ms(sum(time for owner, time in attribution.device.items() if not owner.path), num_steps),
        },
        "operators": _operator_rows(attribution, num_steps),
        "device": _device(attribution, num_steps),
        "verdict": _verdict(attribution, mean),
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


def _device(attribution: Attribution, num_steps: int) -> dict[str, float] | None:
    if not attribution.device:
        return None
    start, end = attribution.span
    return {
        "busy_share": attribution.device_busy / (end - start),
        "ms": _ms(sum(attribution.device.values()), num_steps),
    }


def _verdict(attribution: Attribution, mean: Mapping[str, float]) -> dict[str, Any]:
    computing = mean["ms"] - mean["data_ms"]
    overhead = _ms(attribution.overhead, len(attribution.steps))
    device = _device(attribution, len(attribution.steps))
    shares = Shares(
        data=mean["data_ms"] / mean["ms"],
        overhead=overhead / computing,
        device_busy=device["busy_share"] if device else None,
    )
    return asdict(judge(shares, step_ms=mean["ms"], largest=_largest(attribution))) | {"shares": asdict(shares)}


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


def write_summary(summary: Mapping[str, Any], window: Path) -> Path:
    """Write `summary.json` (of other ranks than 0: `summary.rank1.json`) into a window's directory, atomically."""
    rank = summary["rank"]
    path = window / ("summary.json" if rank == 0 else f"summary.rank{rank}.json")
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(json.dumps(summary, indent=1) + "\n")
    os.replace(scratch, path)
    return path
