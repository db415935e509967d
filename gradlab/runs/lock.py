"""The lock of a run folder: held by the process that runs it, released by the kernel however that process ends."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradlab.errors import RunError

_PATIENCE_SECONDS = 1.0


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock for the time of a `with` block and count one more attempt; yields its number, from 1.

    Raises:
        RunError: where another process holds it.
    """
    with open(path, "a+", encoding="utf-8") as file:
        _acquire(file.fileno(), path)
        attempt = int(_parse(path).get("attempt", 0)) + 1
        file.truncate(0)
        file.write(json.dumps({"attempt": attempt, "pid": os.getpid()}) + "\n")
        file.flush()
        yield attempt


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. Takes a shared lock for an instant, which `locked` sits out."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_lock(path: Path) -> dict[str, Any]:
    """`attempt` and `pid` of the last process that held the lock, or {}."""
    return _parse(path)


def _acquire(descriptor: int, path: Path) -> None:
    """Take the exclusive lock, waiting a moment for those who only look."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            pid = _parse(path).get("pid", "unknown")
            raise RunError(f"{path.parent} is being run by process {pid}; stop that one or wait for its end.") from None
        return


def _parse(path: Path) -> dict[str, Any]:
    """The contents of a lock file, {} where it is absent or empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
