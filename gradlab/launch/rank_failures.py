"""Which rank of a run failed first, and what rank zero writes about it, even where it waits for that rank forever.

A rank that waits in a collective for one that has failed runs no Python code any more: no handler, no `finally`. It is
killed there, by Lightning or by torchrun, and nobody would know why. So each rank that fails leaves a note, and a
thread of rank zero looks for notes, for processes that have ended and for signals, and writes `exit.json` ahead. While
the process lives its run is `running`, so what is written ahead is read only if it was killed; a run that ends in any
other way writes over it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradlab.distributed import launched_rank
from gradlab.runs.folder import RunFolder, read_json, write_json

_PATIENCE_SECONDS = 3.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a further rank ended."""

    rank: int
    code: int
    reason: str
    at: float
    """When, in seconds since the epoch."""

    @classmethod
    def of_process(cls, rank: int, code: int) -> Failure:
        """What is known of a process by the code that it ended with, negative where a signal has killed it."""
        reason = f"killed by signal {-code}" if code < 0 else f"left with exit code {code}"
        return cls(rank=rank, code=code if code > 0 else 128 - code, reason=reason, at=time.time())


def note_failure(folder: RunFolder, *, code: int, reason: str) -> None:
    """This rank has failed: leave word for rank zero."""
    path = folder.path / f"exit-rank{launched_rank()}.json"
    write_json(path, {"rank": launched_rank(), "code": code, "reason": reason, "at": time.time()})


def failure_sentence(failure: Failure, folder: RunFolder) -> str:
    """What a run says of the rank that failed."""
    log = folder.path / f"log-rank{failure.rank}.txt"
    return f"rank {failure.rank} failed, {failure.reason} ({log})"


def first_failure(folder: RunFolder, processes: Sequence[Any] = (), *, since: float, patience: bool) -> Failure | None:
    """The further rank that failed first, by its note or by what its process ended with.

    Args:
        folder: of the run.
        processes: of ranks 1, 2, ..., where this one has started them.
        since: when this attempt began.
        patience: wait a little, where this rank itself knows no more than that another one is gone.
    """
    deadline = time.monotonic() + (_PATIENCE_SECONDS if patience else 0.0)
    while True:
        notes = [note for path in folder.path.glob("exit-rank*.json") if (note := read_json(path))]
        failures = [Failure(**note) for note in notes if note["at"] >= since]
        if failures:
            return min(failures, key=lambda failure: failure.at)
        for rank, process in enumerate(processes, start=1):
            code = process.poll()
            if code:
                return Failure.of_process(rank, code)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)


class RankFailureWatch:
    """A thread that writes `exit.json` for a rank that fails or a signal that comes during a `with` block."""

    def __init__(self, folder: RunFolder, processes: Callable[[], Sequence[Any]], *, since: float) -> None:
        """`processes` gives those of ranks 1, 2, ..., as far as this one has started them."""
        self._folder = folder
        self._processes = processes
        self._since = since
        self._ended = threading.Event()
        self._signals, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._thread = threading.Thread(target=self._watch, name="gradlab-rank-failures", daemon=True)

    def __enter__(self) -> RankFailureWatch:
        self._before: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        self._ended.set()
        self._thread.join()
        os.close(self._signals)
        os.close(self._wakeup)

    def _watch(self) -> None:
        is_noted = False
        while not self._ended.is_set():
            failure = first_failure(self._folder, self._processes(), since=self._since, patience=False)
            if failure is not None:
                self._write(failure.code, failure_sentence(failure, self._folder))
                return
            if signal.SIGTERM in self._received() and not is_noted:
                is_noted = True
                self._write(1, "SIGTERM came and then the process was killed, while it waited for other ranks")

    def _received(self) -> bytes:
        """The numbers of the signals that have come, after a little while."""
        ready, _, _ = select.select([self._signals], [], [], _LOOK_SECONDS)
        return os.read(self._signals, 64) if ready else b""

    def _write(self, code: int, reason: str) -> None:
        with contextlib.suppress(OSError):
            self._folder.write_exit(code=code, reason=reason)
