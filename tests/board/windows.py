"""A window of the profiler with every part that summary.json, schema 2, may have: what no CPU run brings together."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

PHASES = {"data_ms": 1.0, "forward_ms": 4.0, "backward_ms": 6.0, "optimizer_ms": 2.0, "other_ms": 0.5}
TRACE = "rank0.1.pt.trace.json.gz"


def module(name: str, kind: str, ms: float) -> dict[str, Any]:
    times = {f"{p}{q}{s}_ms": ms for p in ("", "device_") for q in ("forward", "backward") for s in ("", "_self")}
    return {"name": name, "kind": kind, "calls": 1.0, **times, "retained_bytes": 4096, "peak_bytes": 8192}


def summary() -> dict[str, Any]:
    gaps = [{"ms": 0.7, "cause": "sync", "step": 3, "before": "gemm", "module": "head"}]
    return {
        "schema": 2,
        "torch": "2.13.0",
        "rank": 0,
        "world_size": 2,
        "reason": {"kind": "slow_step", "detail": "step 2 took 40 ms"},
        "steps": [{"step": step, "ms": 13.5, **PHASES} for step in (3, 4)],
        "mean": {"ms": 13.5, **PHASES},
        "modules": [module("", "Net", 4.0), module("blocks.0", "Block", 2.0), module("blocks.0.fc", "Linear", 1.5)],
        "unattributed": {"forward_ms": 0.1, "backward_ms": 0.1, "device_ms": 0.1},
        "operators": [{"name": "aten::mm", "calls": 3.0, "host_self_ms": 0.5, "device_ms": 2.0}],
        "kernels": [{"name": "gemm", "operator": "aten::mm", "calls": 3.0, "ms": 2.0, "tensor_cores": True}],
        "device": {
            "name": "A device",
            "busy_share": 0.61,
            "ms": 8.0,
            "tensor_core_share": 0.4,
            "copies_ms": 0.2,
            "collectives_ms": 0.3,
            "idle": {"data_ms": 1.0, "sync_ms": 0.7, "host_ms": 0.4, "queue_ms": 0.1, "gaps": gaps},
        },
        "memory": {
            "device": "cuda:0",
            "peak_bytes": 5_000_000,
            "peak_step": 3,
            "categories": {"parameters": 2_000_000, "activations": 3_000_000},
        },
        "collectives_ms": 0.3,
        "ranks": [{"rank": rank, "ms": 13.5, **PHASES, "collectives_ms": 0.3} for rank in (0, 1)],
        "verdict": {"bound": "straggler", "sentence": "straggler-bound: rank 1 is late.", "attempts": ["wait"]},
        "notes": ["the window was cut short"],
    }


def write_windows(run: Path) -> None:
    """A sound window, one of a newer gradlab, one that is broken, and one that another profiler wrote."""
    for name, text in (
        ("step_000003", json.dumps(summary())),
        ("step_000010", json.dumps({"schema": 99})),
        ("step_000020", '{"schema": 2, "st'),
        ("step_000030", None),
    ):
        folder = run / "profile" / name
        folder.mkdir(parents=True)
        (folder / TRACE).write_bytes(gzip.compress(b'{"traceEvents": []}'))
        if text is not None:
            (folder / "summary.json").write_text(text)
