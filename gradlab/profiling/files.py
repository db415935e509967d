"""The windows of a run on disk: finding them, and reading their summaries. Without torch.

Belongs here: reading, for `gradlab profile`. Does not: writing (writer.py), and what is in a summary
(`analysis/summary.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradlab.errors import ProfileError, did_you_mean
from gradlab.profiling.analysis.summary import SCHEMA


def windows_in(folder: Path) -> list[Path]:
    """The complete windows of a profile folder, the oldest first."""
    found = (path.parent for path in folder.glob("[!.]*/summary.json"))
    return sorted(found, key=lambda window: ((window / "summary.json").stat().st_mtime_ns, window.name))


def window_named(folder: Path, name: str | None) -> Path:
    """A window by its name, by the number of its first step, or the newest one.

    Raises:
        ProfileError: where there is none.
    """
    windows = windows_in(folder)
    if not windows:
        raise ProfileError(
            f"no profile windows in {folder}. `gradlab profile RUN` asks a running run for one; an experiment plans "
            "them with `profile: {wait: 5, warmup: 2, active: 3}`."
        )
    if name is None:
        return windows[-1]
    for window in windows:
        if name in (window.name, window.name.removeprefix("step_").lstrip("0") or "0"):
            return window
    names = [window.name for window in windows]
    raise ProfileError(f"no window {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}.")


def read_summary(window: Path, *, rank: int = 0) -> dict[str, Any]:
    """The summary of a window, as one rank has written it.

    Raises:
        ProfileError: where it is absent, broken, or of a schema that this version does not know.
    """
    path = window / summary_name(rank)
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{window.name} has no summary of rank {rank}: {error.strerror}.") from None
    except ValueError as error:
        raise ProfileError(f"{path} is not JSON: {error}.") from None
    if summary.get("schema") != SCHEMA:
        written = summary.get("schema")
        raise ProfileError(f"{path} has schema {written}, and this gradlab reads {SCHEMA}: record the window again.")
    return summary


def summary_name(rank: int) -> str:
    """The name of a rank's summary: `summary.json` of rank zero, `summary.rank1.json`."""
    return "summary.json" if rank == 0 else f"summary.rank{rank}.json"
