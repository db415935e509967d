"""The windows of the profiler that a run has, from the summary.json in each of their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradlab.errors import UsageError

KNOWN_SCHEMA = 2
TRACES = "*.json.gz"


def windows(folder: Path | None) -> list[Path]:
    """The folders of a run's windows, in the order of their steps."""
    if folder is None or not (folder / "profile").is_dir():
        return []
    return sorted(path for path in (folder / "profile").iterdir() if path.is_dir() and not path.name.startswith("."))


def describe(window: Path) -> dict[str, Any]:
    """A window for the page: its name, its traces, its summary, or a sentence that says why there is none."""
    traces = [{"name": path.name, "bytes": path.stat().st_size} for path in sorted(window.glob(TRACES))]
    found: dict[str, Any] = {"name": window.name, "traces": traces}
    try:
        summary = json.loads((window / "summary.json").read_text(encoding="utf-8"))
        schema = summary["schema"]
    except FileNotFoundError:
        return found | {"problem": "This window has a trace but no summary.json: it was not written by gradlab."}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return found | {"problem": f"The summary of this window cannot be read ({type(error).__name__}: {error})."}
    if not isinstance(schema, int) or schema > KNOWN_SCHEMA:
        return found | {
            "problem": f"This window was written by a newer gradlab (schema {schema}; this board knows {KNOWN_SCHEMA})."
            " Its trace can still be opened."
        }
    return found | {"summary": summary}


def trace(folder: Path | None, window: str, name: str) -> Path:
    """The trace file of a window.

    Raises:
        UsageError: where there is no such file; names are looked up, never joined to a path.
    """
    for path in windows(folder):
        if path.name == window:
            for file in path.glob(TRACES):
                if file.name == name:
                    return file
    raise UsageError(f"there is no trace {name!r} in a window {window!r} of this run.")
