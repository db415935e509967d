"""The lookout: a thread of rank zero that writes `exit.json` ahead, while rank zero itself may wait forever.

A rank that waits in a collective for one that has failed runs no Python code any more: no handler, no `finally`. It is
killed there, by Lightning or by torchrun, and nobody would know why. While the process lives its run is `running`, so
what is written ahead is read only if it was killed; a run that ends in any other way writes over it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gradlab.launch.processes import blame, first_failure
from gradlab.runs.folder import RunFolder

_LOOK_SECONDS = 0.1


class Lookout:
    """Watches the other ranks, and signals that come, during a `with` block; its thread has ended after it."""

    def __init__(self, folder: RunFolder, processes: Callable[[], Sequence[Any]], *, since: float) -> None:
        """`processes` gives those of ranks 1, 2, ..., as far as this one has started them."""
        self._folder = folder
        self._processes = processes
        self._since = since
        self._ended = threading.Event()
        self._signals, self._told = os.pipe()
        os.set_blocking(self._told, False)
        self._thread = threading.Thread(target=self._look, name="gradlab-lookout", daemon=True)

    def __enter__(self) -> Lookout:
        self._before: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        self._ended.set()
        self._thread.join()
        os.close(self._signals)
        os.close(self._told)

    def _look(self) -> None:
        is_told = False
        while not self._ended.is_set():
            failure = first_failure(self._folder, self._processes(), since=self._since, patience=False)
            if failure is not None:
                self._write(failure.code, blame(failure, self._folder))
                return
            if signal.SIGTERM in self._came() and not is_told:
                is_told = True
                self._write(1, "SIGTERM came and then the process was killed, while it waited for other ranks")

    def _came(self) -> bytes:
        """The numbers of the signals that have come, after a little while."""
        ready, _, _ = select.select([self._signals], [], [], _LOOK_SECONDS)
        return os.read(self._signals, 64) if ready else b""

    def _write(self, code: int, reason: str) -> None:
        with contextlib.suppress(OSError):
            self._folder.write_exit(code=code, reason=reason)
