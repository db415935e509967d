"""Commands that gradlab suggests: written so that they work when they are pasted into this shell, in this folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def hint(command: str, run: str | Path) -> str:
    """`gradlab <command> RUN` for the run in folder `run`: by its id where it lies in the usual place, else by path."""
    folder = Path(run)
    usual = Path(os.environ.get("GRADLAB_RUNS") or "runs")
    name = folder.name if folder.resolve().parents[1] == usual.resolve() else str(folder)
    return f"{program()} {command} {shlex.quote(name)}"


def program() -> str:
    """How this shell calls gradlab, which need not be on its PATH."""
    if shutil.which("gradlab"):
        return "gradlab"
    called = Path(sys.argv[0])
    if called.name == "gradlab":
        return shlex.quote(os.path.relpath(called))
    return f"{shlex.quote(sys.executable)} -m gradlab"
