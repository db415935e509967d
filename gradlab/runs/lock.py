"""The lock of a run folder: held by the process that runs it, released by the kernel however that process ends.

Some file systems (NFS without its lock daemon, Lustre without `-o flock`, some FUSE mounts) have no locks. There the
lock file says who runs the folder, and whether that process still lives is asked of the kernel: by its id and the
moment it was started, so that an id which is used again does not pass for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from gradlab.errors import RunError, warn

_PATIENCE_SECONDS = 1.0


@contextmanager
def locked(path: Path, say: Callable[[str], None] = warn) -> Iterator[int]:
    """Hold the lock for the time of a `with` block and count one more attempt; yields its number, from 1.

    Where the file system has no locks it goes on without one, and `say` is given a sentence on that once.

    Raises:
        RunError: where another process holds it.
    """
    with open(path, "a+", encoding="utf-8") as file:
        missing = _acquire(file.fileno(), path)
        attempt = int(_parse(path).get("attempt", 0)) + 1
        owner = {"attempt": attempt, "pid": os.getpid()}
        if missing is not None:
            say(f"{path.parent} is run without a lock, which its file system does not have ({missing.strerror}).")
        _write(file, owner | (_identity(os.getpid()) if missing is not None else {}))
        try:
            yield attempt
        finally:
            if missing is not None and path.exists():
                _write(file, owner)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. Takes a shared lock for an instant, which `locked` sits out."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return _is_run_by(_parse(path))


def read_lock(path: Path) -> dict[str, Any]:
    """`attempt` and `pid` of the last process that held the lock, or {}."""
    return _parse(path)


def _acquire(descriptor: int, path: Path) -> OSError | None:
    """Take the exclusive lock, waiting a moment for those who only look; what the system says where it has none."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    missing: OSError | None = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            raise _is_held(path) from None
        except OSError as error:
            missing = error
        if _is_run_by(_parse(path)):
            raise _is_held(path)
        return missing


def _is_held(path: Path) -> RunError:
    pid = _parse(path).get("pid", "unknown")
    return RunError(f"{path.parent} is being run by process {pid}; stop that one or wait for its end.")


def _identity(pid: int) -> dict[str, Any]:
    """What distinguishes a process from another that is given its id later, or that has it on another machine."""
    return {"host": platform.node(), "process_started": _start_of(pid)}


def _is_run_by(owner: Mapping[str, Any]) -> bool:
    """Whether the process that a lock file names, without having a lock, still lives: on this host, as far as known."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or "process_started" not in owner:
        return False
    identity = _identity(pid)
    return identity["process_started"] is not None and all(owner.get(key) == value for key, value in identity.items())


def _start_of(pid: int) -> str | None:
    """When a process was started, in the kernel's words; None where there is no such process."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # no /proc: the id has to do
        return "unknown"
    return fields[19].decode()


def _write(file: TextIO, owner: Mapping[str, Any]) -> None:
    file.truncate(0)
    file.write(json.dumps(owner) + "\n")
    file.flush()


def _parse(path: Path) -> dict[str, Any]:
    """The contents of a lock file, {} where it is absent or empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
