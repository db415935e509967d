"""The end of an attached process: how it is noticed, with which code, and tracebacks without gradlab's frames.

`sys.exit`, `os._exit` and uncaught exceptions are seen on their way; their effect is theirs. A bare
`raise SystemExit(n)` calls nothing that could be seen: no hook, and at exit it is gone. But once a script's last line
has run, and before the interpreter looks at what the script has raised, it flushes standard error; by a `flush` on that
object we are called then, and find the exception among all objects. A module that is run with `-m` is not flushed so.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import gradlab
from gradlab.launch.rank_failures import Failure

_OURS = str(Path(gradlab.__file__).parent) + os.sep


class Ending:
    """Calls `finish` once, at the end of the process in which it was installed or of a fork of it."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._done = False
        self.code = 0
        """The exit code, as far as it is known."""
        self.reason = "done"
        """One sentence."""
        self.failure: Failure | None = None
        """In a launcher: the rank that failed."""

    def install(self) -> None:
        """Notice the end from now on."""
        atexit.register(self.finish)
        self._see_exit()
        self._see_hard_exit()
        self._see_exceptions()
        self._see_last_flush()

    def finish(self) -> None:
        """The process ends."""
        if not self._done:
            self._done = True
            self._finish()
            if self.code == 130:
                _interrupt_again()

    @property
    def is_over(self) -> bool:
        """Whether the process has ended, as far as anybody is told."""
        return self._done

    def begin_again(self) -> None:
        """In a fork: nothing has ended here."""
        self._done = False

    def _see_exit(self) -> None:
        leave = sys.exit

        def exit(status: Any = None, /) -> Any:
            self._note_exit(status, "sys.exit")
            try:
                leave(status)
            except SystemExit:  # before 3.12 it is an object, to be found, once somebody has caught it
                raise

        sys.exit = exit

    def _see_hard_exit(self) -> None:
        leave = os._exit

        def _exit(status: int) -> Any:
            self.code, self.reason = status, f"os._exit({status!r})" if status else "done"
            self.finish()
            leave(status)

        os._exit = _exit  # type: ignore[assignment]

    def _see_exceptions(self) -> None:
        show = sys.excepthook

        def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
            interrupted = issubclass(kind, KeyboardInterrupt)
            self.code = 130 if interrupted else 1
            self.reason = "interrupted" if interrupted else f"{kind.__name__}: {error}"
            self.failure = failed_rank(error)
            trace = without_our_frames(error, trace)
            return show(kind, error, trace)

        sys.excepthook = excepthook

    def _see_last_flush(self) -> None:
        stream = sys.stderr
        flush = getattr(stream, "flush", None)
        if flush is None:
            return

        def flush_and_look() -> Any:
            flush()
            if sys._getframe().f_back is None and not self._done:  # the interpreter itself has called
                self._script_has_run()

        with contextlib.suppress(AttributeError):  # somebody's own stream with slots
            stream.flush = flush_and_look  # type: ignore[method-assign]

    def _script_has_run(self) -> None:
        """All lines of the script have run; what it has raised, if anything, is held by the interpreter alone."""
        found = [one for one in gc.get_objects() if issubclass(type(one), SystemExit)]
        raised = [one for one in found if not [by for by in gc.get_referrers(one) if by is not found]]
        if raised and code_of(raised[-1].code) != self.code:
            self._note_exit(raised[-1].code, "SystemExit")
        elif not found:
            self.code, self.reason = 0, "done"  # an exit that was called for has been caught

    def _note_exit(self, status: Any, how: str) -> None:
        self.code = code_of(status)
        self.reason = f"{how}({status!r})" if self.code else "done"


def code_of(status: Any) -> int:
    """The exit code that Python makes of what an exit was called with."""
    return 0 if status is None else status if isinstance(status, int) else 1


def failed_rank(error: BaseException) -> Failure | None:
    """The rank that torchrun's error (ChildFailedError) blames; None for any other error.

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


def without_our_frames(error: BaseException, trace: TracebackType | None) -> TracebackType | None:
    """The traceback of an error as it would be without gradlab; those of its causes are changed likewise, in place."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = _stripped(trace if one is error else one.__traceback__)
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return error.__traceback__


def _stripped(trace: TracebackType | None) -> TracebackType | None:
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    kept = [one for one in frames if not one.tb_frame.f_code.co_filename.startswith(_OURS)]
    following: TracebackType | None = None
    # Where nothing but gradlab is in it, gradlab is what failed.
    for one in reversed(kept or frames):
        following = TracebackType(following, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return following
