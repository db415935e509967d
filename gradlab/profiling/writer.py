"""Writes a closed window into its directory, in the background: the trace, `summary.json`, the verdict as a finding.

Belongs here: names, places and the moment at which files appear. Does not: what is in them (trace_file.py,
`analysis/summary.py`), and reading them (files.py).

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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradlab.finding import Finding
from gradlab.profiling.analysis.ranks import with_ranks
from gradlab.profiling.analysis.summary import NO_KERNELS, summarize
from gradlab.profiling.files import summary_name
from gradlab.profiling.kineto import read_window
from gradlab.profiling.recording import RecordedWindow
from gradlab.profiling.trace_file import TRACE, save_traces
from gradlab.profiling.window import UNTIL_CLOSED, Window

RANKS_TIMEOUT_SECONDS = 30.0
"""How long rank zero waits for the files of the others."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class WrittenWindow:
    """A window that is on disk."""

    folder: Path
    window: Window
    finding: Finding
    """The verdict."""
    missing: tuple[str, ...]
    """Sentences for the user about what could not be recorded on this machine."""
    num_bytes: int
    seconds: float
    """What writing took, waiting for other ranks not counted."""


class BackgroundWriter:
    """Writes windows below `folder`, one after the other, each in a thread of its own."""

    def __init__(self, folder: Path, *, rank: int, world_size: int, keep_raw: bool) -> None:
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._keep_raw = keep_raw
        self._future: Future[WrittenWindow] | None = None

    @property
    def has_written(self) -> bool:
        """Whether a window is complete whose result has not been taken."""
        return self._future is not None and self._future.done()

    def start(self, recorded: RecordedWindow, window: Window) -> None:
        """Begin to write a window. The result of the one before has been taken."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gradlab-profile")
        self._future = thread.submit(
            write_window,
            recorded,
            self._folder,
            window,
            rank=self._rank,
            world_size=self._world_size,
            keep_raw=self._keep_raw,
        )
        thread.shutdown(wait=False)

    def take_result(self) -> WrittenWindow | None:
        """Wait for the window that is being written; None if none is. Raises what writing it raised."""
        future, self._future = self._future, None
        return future.result() if future is not None else None


def write_window(
    recorded: RecordedWindow,
    folder: Path,
    window: Window,
    *,
    rank: int = 0,
    world_size: int = 1,
    keep_raw: bool = False,
) -> WrittenWindow:
    """Write everything about a window into a directory of its own below `folder`."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarize(read_window(recorded), rank=rank, world_size=world_size)
    summary["reason"] = asdict(window.reason)
    summary["notes"] = [*_notes(recorded, window), *summary["notes"]]
    name, stamp = f"step_{recorded.steps[0]:06d}", time.time_ns()
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        files = save_traces(recorded, Path(scratch), rank=rank, stamp=stamp, keep_raw=keep_raw)
        seconds = time.monotonic() - began
        if world_size == 1:
            target = _new_folder(folder, name, rank)
            _publish(files, {rank: summary}, target)
        else:
            target, summary = _join_ranks(folder, name, files, summary, rank=rank, world_size=world_size)
    return WrittenWindow(
        folder=target,
        window=window,
        finding=finding_of(summary),
        missing=tuple(note for note in summary["notes"] if note == NO_KERNELS),
        num_bytes=sum(path.stat().st_size for path in target.iterdir()) if target.is_dir() else 0,
        seconds=seconds,
    )


def finding_of(summary: Mapping[str, Any]) -> Finding:
    """The verdict on a window as a finding, filed under its last recorded step."""
    steps = [round(row["step"]) for row in summary["steps"]]
    which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    shares = {f"share.{key}": value for key, value in summary["verdict"]["shares"].items() if value is not None}
    return Finding(
        code="GL801",
        name="profile",
        first_step=steps[0],
        last_step=steps[-1],
        message=f"the profile of {which} is {summary['verdict']['sentence']}",
        evidence={"step_ms": summary["mean"]["ms"], **shares},
        remedy=f"Try {summary['verdict']['attempts'][0]}.",
        severity="info",
    )


def write_summary(summary: Mapping[str, Any], folder: Path) -> Path:
    """Write `summary.json` (of other ranks than 0: `summary.rank1.json`) into a directory, atomically."""
    path = folder / summary_name(summary["rank"])
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)
    return path


def _notes(recorded: RecordedWindow, window: Window) -> list[str]:
    if window.active == UNTIL_CLOSED or len(recorded.steps) == window.active:
        return []
    return [f"closed early, with {len(recorded.steps)} of {window.active} steps: training was interrupted or ended."]


def _publish(files: Mapping[str, Path], summaries: Mapping[int, Mapping[str, Any]], folder: Path) -> None:
    """Put summaries and files in place; the traces, which make a directory a window, come last."""
    for summary in summaries.values():
        write_summary(summary, folder)
    for name in sorted(files, key=lambda name: name.endswith(TRACE)):
        os.replace(files[name], folder / name)


def _new_folder(parent: Path, name: str, rank: int) -> Path:
    """A directory that holds no trace of this rank yet: `name`, `name_2`, ..."""
    folder, attempt = parent / name, 1
    while folder.is_dir() and any(entry.name.startswith(f"rank{rank}.") for entry in folder.iterdir()):
        attempt += 1
        folder = parent / f"{name}_{attempt}"
    folder.mkdir(exist_ok=True)
    return folder


def _join_ranks(
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
    deadline = time.monotonic() + RANKS_TIMEOUT_SECONDS
    while (summaries := _read_summaries(shared)).keys() != set(range(world_size)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    joined = with_ranks(list(summaries.values()))
    late = sorted(set(range(world_size)) - summaries.keys())
    if late:
        joined["notes"] = [*joined["notes"], f"rank {', '.join(map(str, late))} came too late for this window."]
    target = _new_folder(folder, name, 0)
    parts = {part.name.removesuffix(".part"): part for part in shared.glob("*.part")}
    _publish(parts, summaries | {0: joined}, target)
    shutil.rmtree(shared, ignore_errors=True)
    return target, joined


def _read_summaries(shared: Path) -> dict[int, dict[str, Any]]:
    read = (json.loads(path.read_text(encoding="utf-8")) for path in shared.glob("summary*.json"))
    return {summary["rank"]: summary for summary in read}
