"""How the end of an attached process is noticed, with which exit code and why.

Belongs here: what is put around the ways in which a script can end; their effect stays theirs. Does not: what is done
at the end (`watching`), and how errors are shown (`tracebacks`).

`sys.exit`, `os._exit` and uncaught exceptions are seen by functions in their place. A bare `raise SystemExit(n)` calls
nothing that could be replaced: no hook, and when `atexit` runs it is gone. But once a script's last line has run, and
before the interpreter looks at what the script has raised, the interpreter flushes standard error; a `flush` of ours on
that object is called then, and finds the exception among all objects. A module that is run with `-m` is not flushed so.

Why not run the script ourselves, by `runpy` inside of try and except? It would no longer be the process that it is
without gradlab. What is attached is often no script of this process: torchrun, a shell script and what they start are
entered by `sitecustomize`, where `__main__` is Python's own to run. And where it is one, `runpy` changes what scripts
rely on: `__main__.__spec__`, by which spawned children find the script again, the bottom of each traceback, what Ctrl-C
interrupts, and threads and `atexit` functions that outlive the last line.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from gradlab.attach.tracebacks import without_our_frames
from gradlab.errors import TrainingStopped
from gradlab.launch.rank_failures import Failure


class ExitHooks:
    """Call `finish` once, at the end of the process in which they were installed or of a fork of it."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._has_finished = False
        self.code = 0
        """The exit code, as far as it is known."""
        self.reason = "done"
        """Why the process has ended, in a sentence."""
        self.failure: Failure | None = None
        """In a launcher: the rank that has failed."""

    def install(self) -> None:
        """Put them in place."""
        atexit.register(self.finish)
        self._hook_sys_exit()
        self._hook_os_exit()
        self._hook_exceptions()
        self._hook_last_flush()

    def finish(self) -> None:
        """The process ends."""
        if not self._has_finished:
            self._has_finished = True
            self._finish()
            if self.code == 130:
                _interrupt_again()

    @property
    def is_over(self) -> bool:
        """Whether `finish` has been called."""
        return self._has_finished

    def reset(self) -> None:
        """In a fork: nothing has ended here."""
        self._has_finished = False

    def _hook_sys_exit(self) -> None:
        leave = sys.exit

        def exit(status: Any = None, /) -> Any:
            self._note_exit(status, "sys.exit")
            try:
                leave(status)
            except SystemExit:  # before 3.12 it is an object, to be found, once somebody has caught it
                raise

        sys.exit = exit

    def _hook_os_exit(self) -> None:
        leave = os._exit

        def _exit(status: int) -> Any:
            self.code, self.reason = status, f"os._exit({status!r})" if status else "done"
            self.finish()
            leave(status)

        os._exit = _exit  # type: ignore[assignment]

    def _hook_exceptions(self) -> None:
        show = sys.excepthook

        def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
            interrupted = issubclass(kind, KeyboardInterrupt)
            self.code = 130 if interrupted else 1
            self.reason = "interrupted" if interrupted else f"{kind.__name__}: {error}"
            self.failure = failed_rank(error)
            trace = without_our_frames(error, trace)
            return show(kind, error, trace)

        sys.excepthook = excepthook

    def _hook_last_flush(self) -> None:
        stream = sys.stderr
        flush = getattr(stream, "flush", None)
        if flush is None:
            return

        def flush_and_look() -> Any:
            flush()
            if sys._getframe().f_back is None and not self._has_finished:  # the interpreter itself has called
                self._script_has_run()

        with contextlib.suppress(AttributeError):  # somebody's own stream with slots
            stream.flush = flush_and_look  # type: ignore[method-assign]

    def _script_has_run(self) -> None:
        """All lines of the script have run; what it has raised, if anything, is held by the interpreter alone."""
        found = [one for one in gc.get_objects() if issubclass(type(one), SystemExit)]
        raised = [one for one in found if not [by for by in gc.get_referrers(one) if by is not found]]
        if raised and code_of(raised[-1].code) != self.code:
            self._note_exit(raised[-1].code, "SystemExit")
            if isinstance(raised[-1], TrainingStopped):
                self.reason = str(raised[-1])
        elif not found:
            self.code, self.reason = 0, "done"  # an exit that was called for has been caught

    def _note_exit(self, status: Any, how: str) -> None:
        self.code = code_of(status)
        self.reason = f"{how}({status!r})" if self.code else "done"


def code_of(status: Any) -> int:
    """The exit code that Python makes of what an exit was called with."""
    return 0 if status is None else status if isinstance(status, int) else 1


def failed_rank(error: BaseException) -> Failure | None:
    """The rank that torchrun's error (ChildFailedError) names as the cause; None for any other error.

    Of ranks that failed within a second, the one that a signal has killed: the others have lost their connection.
    """
    failures = getattr(error, "failures", None)
    if type(error).__name__ != "ChildFailedError" or not failures:
        return None
    killed = [rank for rank, one in failures.items() if one.exitcode < 0 and one.exitcode != -signal.SIGTERM]
    rank = min(killed or failures, key=lambda rank: (failures[rank].timestamp, rank))
    return Failure.of_process(rank, failures[rank].exitcode)


def _interrupt_again() -> None:
    """Let the interpreter remember that it was interrupted, so that it ends by SIGINT as it should.

    It forgets with the next `exec` of a text, as in every import of a dataclass, and learns by one that is interrupted.
    """
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return
