"""The part of a traceback that concerns the user: it begins where their own code was called."""

from __future__ import annotations

import traceback
from types import TracebackType

_PACKAGES = ("gradlab", "pytorch_lightning", "lightning_fabric", "torch", "contextlib")


def users_traceback(error: BaseException) -> str:
    """The traceback of `error` without the frames of gradlab and Lightning that lead to the user's code.

    All of it where no code of the user takes part.
    """
    start = _first_of_user(error.__traceback__) or error.__traceback__
    return "".join(traceback.format_exception(type(error), error, start))


def _first_of_user(frames: TracebackType | None) -> TracebackType | None:
    """The first frame of a traceback that lies in no package which calls users' code."""
    while frames is not None:
        name = frames.tb_frame.f_globals.get("__name__", "")
        # Models that ship with gradlab are users' code as much as anybody's.
        if name.startswith(("gradlab.models", "gradlab.data")) or name.partition(".")[0] not in _PACKAGES:
            return frames
        frames = frames.tb_next
    return None
