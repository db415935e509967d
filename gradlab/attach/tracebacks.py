"""Tracebacks of a script's errors as they would be without gradlab in between."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import gradlab

_OURS = str(Path(gradlab.__file__).parent) + os.sep


def without_our_frames(error: BaseException, trace: TracebackType | None) -> TracebackType | None:
    """The traceback of an error without the frames of gradlab; those of its causes are changed likewise, in place."""
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
