"""From a closed window to its directory, in the background: the trace, `summary.json`, and the verdict as a finding.

A directory appears when everything in it is complete: the PyTorch Profiler tab reads a directory once and never again,
and people who look at summaries must not see half of one. Where several ranks train together, each leaves its files in
a hidden directory under names that nobody reads, and rank zero publishes them all at once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.frame import Finding
from gradlab.profiling.analysis.ranks import with_ranks
from gradlab.profiling.analysis.summary import summarize
from gradlab.profiling.files import summary_name
from gradlab.profiling.options import Turn
from gradlab.profiling.recording import Recorded
from gradlab.profiling.trace import TRACE, save_traces

UNTIL_CLOSED = 2**40
"""As many active steps: record until the window is closed."""
PATIENCE_SECONDS = 30.0
"""How long rank zero waits for the files of the others."""
_STEP_OF_LOOKING = 0.02


@dataclass(frozen=True, kw_only=True)
class Written:
    """A window that is on disk."""

    window: Path
    finding: Finding
    """The verdict."""
    missing: tuple[str, ...]
    """Sentences for the user about what this machine did not give."""
    turn: Turn
    """Why there was a window, and whose request it answers."""
    num_bytes: int
    seconds: float
    """What writing took, waiting for other ranks not counted."""


def write_window(
    recorded: Recorded, folder: Path, turn: Turn, *, rank: int = 0, world_size: int = 1, keep_raw: bool = False
) -> Written:
    """Write everything about a window into a directory of its own below `folder`."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarize(recorded, rank=rank, world_size=world_size)
    summary |= {"reason": {"kind": turn.reason.kind, "detail": turn.reason.detail}}
    summary["notes"] = [*_notes(recorded, turn), *summary["notes"]]
    name, stamp = f"step_{recorded.steps[0]:06d}", time.time_ns()
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        files = save_traces(recorded, Path(scratch), rank=rank, stamp=stamp, keep_raw=keep_raw)
        seconds = time.monotonic() - began
        if world_size == 1:
            window = _fresh(folder, name, rank)
            _publish(files, {rank: summary}, window)
        else:
            window, summary = _join(folder, name, files, summary, rank=rank, world_size=world_size)
    return Written(
        window=window,
        finding=finding_of(summary),
        missing=tuple(note for note in summary["notes"] if note.startswith("no kernels")),
        turn=turn,
        num_bytes=sum(path.stat().st_size for path in window.iterdir()) if window.is_dir() else 0,
        seconds=seconds,
    )


def finding_of(summary: Mapping[str, Any]) -> Finding:
    """The verdict on a window as a finding, filed under its last recorded step."""
    steps = [round(row["step"]) for row in summary["steps"]]
    which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    shares = {f"share.{key}": value for key, value in summary["verdict"]["shares"].items() if value is not None}
    return Finding(
        step=steps[-1],
        kind="profile",
        site="",
        message=f"the profile of {which} is {summary['verdict']['sentence']}",
        evidence={"step_ms": summary["mean"]["ms"], **shares},
        advice=f"Try {summary['verdict']['attempts'][0]}.",
        severity="info",
    )


def write_summary(summary: Mapping[str, Any], window: Path) -> Path:
    """Write `summary.json` (of other ranks than 0: `summary.rank1.json`) into a directory, atomically."""
    path = window / summary_name(summary["rank"])
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)
    return path


def _notes(recorded: Recorded, turn: Turn) -> list[str]:
    if turn.active == UNTIL_CLOSED or len(recorded.steps) == turn.active:
        return []
    return [f"closed early, with {len(recorded.steps)} of {turn.active} steps: training was interrupted or ended."]


def _publish(files: Mapping[str, Path], summaries: Mapping[int, Mapping[str, Any]], window: Path) -> None:
    """Put summaries and files in place; the traces, which make a directory a window, come last."""
    for summary in summaries.values():
        write_summary(summary, window)
    for name in sorted(files, key=lambda name: name.endswith(TRACE)):
        os.replace(files[name], window / name)


def _fresh(folder: Path, name: str, rank: int) -> Path:
    """A directory that holds no trace of this rank yet: `name`, `name_2`, ..."""
    window, attempt = folder / name, 1
    while window.is_dir() and any(entry.name.startswith(f"rank{rank}.") for entry in window.iterdir()):
        attempt += 1
        window = folder / f"{name}_{attempt}"
    window.mkdir(exist_ok=True)
    return window


def _join(
    folder: Path, name: str, files: Mapping[str, Path], summary: dict[str, Any], *, rank: int, world_size: int
) -> tuple[Path, dict[str, Any]]:
    """Leave this rank's files for rank zero; rank zero waits for the others' and publishes all."""
    shared = folder / f".joining-{name}"
    shared.mkdir(exist_ok=True)
    for file, path in files.items():
        os.replace(path, shared / f"{file}.part")
    write_summary(summary, shared)  # last: says that the rank is done
    if rank != 0:
        return folder / name, summary
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := _summaries(shared)).keys() != set(range(world_size)) and time.monotonic() < deadline:
        time.sleep(_STEP_OF_LOOKING)
    joined = with_ranks(list(found.values()))
    late = sorted(set(range(world_size)) - found.keys())
    if late:
        joined["notes"] = [*joined["notes"], f"rank {', '.join(map(str, late))} came too late for this window."]
    window = _fresh(folder, name, 0)
    parts = {part.name.removesuffix(".part"): part for part in shared.glob("*.part")}
    _publish(parts, found | {0: joined}, window)
    shutil.rmtree(shared, ignore_errors=True)
    return window, joined


def _summaries(shared: Path) -> dict[int, dict[str, Any]]:
    read = (json.loads(path.read_text(encoding="utf-8")) for path in shared.glob("summary*.json"))
    return {summary["rank"]: summary for summary in read}
