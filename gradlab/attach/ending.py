"""The end of an attached process: how it is noticed, with which code, and tracebacks without gradlab's frames.

`sys.exit`, `os._exit` and uncaught exceptions are seen on their way; their effect is theirs.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import gradlab

_OURS = str(Path(gradlab.__file__).parent) + os.sep


class Ending:
    """Calls `finish` once, at the end of the process in which it was installed or of a fork of it."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._done = False
        self.code = 0
        """The exit code, as far as it is known. That of a bare `raise SystemExit(n)` is not."""
        self.reason = "done"
        """One sentence."""

    def install(self) -> None:
        """Notice the end from now on."""
        atexit.register(self.finish)
        self._see_exit()
        self._see_hard_exit()
        self._see_exceptions()

    def finish(self) -> None:
        """The process ends."""
        if not self._done:
            self._done = True
            self._finish()
            if self.code == 130:
                _interrupt_again()

    def begin_again(self) -> None:
        """In a fork: nothing has ended here."""
        self._done = False

    def _see_exit(self) -> None:
        leave = sys.exit

        def exit(status: Any = None, /) -> Any:
            self.code = 0 if status is None else status if isinstance(status, int) else 1
            if self.code:
                self.reason = f"sys.exit({status!r})"
            leave(status)

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
            trace = without_our_frames(error, trace)
            return show(kind, error, trace)

        sys.excepthook = excepthook


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
