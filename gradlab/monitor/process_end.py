"""What is called when the process ends, for monitors that nobody has closed: every way in which a script can end.

| what happens | what becomes of what is watched |
|---|---|
| the last line has run, `sys.exit`, an uncaught exception, Ctrl-C | handed out and closed, before Python shuts down |
| `os.exec*`: the process becomes another program | handed out and flushed; an exec that fails changes nothing |
| the model is collected, or the optimizers that were given are | handed out and closed (`lifetime`) |
| `fork` | goes on in the parent; the child has no part in it, and neither writes nor hands out anything |
| `os._exit`, a signal that nobody handles | nothing can be done: what was written up to five seconds before is there |

Order: threads that Python waits for may still train when the main one has ended, and are waited for; where there are
none, the end comes before Python shuts its executors down, with which a profile window is written. Whatever was
registered with `atexit` before the first `watch` (torch, logging, a progress bar) is still there at the end.

Not here: what is handed out, and closed (`monitor`, `attach.watching`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from typing import Any, Protocol

from gradlab.errors import warn


class Followed(Protocol):
    """An object that is called when the process ends."""

    def end(self) -> None:
        """The process ends: hand out what is under way, close, wait for nobody."""

    def flush(self) -> None:
        """The process may be over in an instant: hand out what is under way, and go on."""

    def go_on(self) -> None:
        """It was not over."""

    def abandon(self) -> None:
        """This is a child made by fork: let go without handing anything out."""


_followed: dict[int, weakref.ref[Any]] = {}
"""The objects that are called at the end, by id, in the order in which they began; held weakly."""
_needed: dict[int, tuple[object, ...]] = {}
"""What each of them needs at its end, by the same id."""
_process = 0
"""The process in which the end is waited for."""
_follows_forks = False
_execs: dict[str, tuple[Any, Any]] = {}
"""By name: a function of `os` that ours replaces, and ours."""


def follow(one: Followed, *, keeping: Sequence[object] = ()) -> None:
    """Call this object at the end of the process, as long as it lives and until `forget`.

    Args:
        one: is called.
        keeping: what has to be there at its end, and does not refer to it: files, which would close themselves first.
    """
    _install()
    _followed[id(one)] = weakref.ref(one)
    _needed[id(one)] = tuple(keeping)
    _wrap_exec()


def forget(one: Followed) -> None:
    """Call it no longer: it has ended by itself."""
    ref = _followed.get(id(one))
    if ref is not None and ref() in (one, None):
        del _followed[id(one)]
        _needed.pop(id(one), None)
    if not _followed:
        _unwrap_exec()


def living() -> list[Any]:
    """The objects that are followed now, oldest first."""
    return [one for ref in list(_followed.values()) if (one := ref()) is not None]


def end_all() -> None:
    """The process ends. What fails is warned of and does not keep others from their end."""
    if os.getpid() == _process:
        for one in reversed(living()):
            _guarded(one.end)


def flush_all() -> None:
    """The process may become another one."""
    if os.getpid() == _process:
        for one in living():
            _guarded(one.flush)


def _install() -> None:
    """Once in a process: a child made by fork has to do it again, for its own."""
    global _process, _follows_forks
    if _process == os.getpid():
        return
    _process = os.getpid()
    weakref.finalize(end_all, int)  # whatever closes files by `finalize` at exit does so after us, then
    atexit.register(end_all)
    Finalize(None, end_all, exitpriority=100)  # a child of `multiprocessing` made by fork runs no `atexit`
    before_threads = getattr(threading, "_register_atexit", None)
    if before_threads is not None:
        with contextlib.suppress(RuntimeError):  # Python is shutting down already
            before_threads(_end_unless_threads_train)
    if not _follows_forks:
        _follows_forks = True
        os.register_at_fork(after_in_child=_after_fork)


def _end_unless_threads_train() -> None:
    others = [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]
    if not [one for one in others if not one.name.startswith(("ThreadPoolExecutor", "gradlab-"))]:
        end_all()


def _after_fork() -> None:
    for one in living():
        _guarded(one.abandon)
    _followed.clear()
    _needed.clear()
    _unwrap_exec()


def _guarded(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:
        with contextlib.suppress(Exception):  # where warnings are errors: nobody is left who could catch them
            warn(f"the results are not complete: {type(error).__name__}: {error}")


# The process becomes another program.


def _wrap_exec() -> None:
    """Replace `os.execv` and `os.execve`, which all others of the family call, as long as anything is followed."""
    if _execs:
        return
    for name in ("execv", "execve"):
        before = getattr(os, name)

        def exec_after_flush(*args: Any, _before: Any = before, **kwargs: Any) -> Any:
            flush_all()
            try:
                return _before(*args, **kwargs)
            finally:  # it has failed, or this line would not be reached
                for one in living():
                    _guarded(one.go_on)

        _execs[name] = (before, exec_after_flush)
        setattr(os, name, exec_after_flush)


def _unwrap_exec() -> None:
    """Put the originals back, unless somebody has replaced ours."""
    for name, (before, ours) in _execs.items():
        if getattr(os, name) is ours:
            setattr(os, name, before)
    _execs.clear()
