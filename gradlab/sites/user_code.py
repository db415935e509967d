"""The user's own code among the frames of a call: the nearest line that is neither gradlab's nor torch's.

Belongs here: which files count as whose. Does not: warnings, which find their line by themselves (`errors`).
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache

import torch

_GRADLAB = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_MODELS = (_GRADLAB + "models" + os.sep, _GRADLAB + "data" + os.sep)


@lru_cache(maxsize=1024)
def is_internal(filename: str) -> bool:
    """Whether a file is gradlab's or torch's. Models that ship with gradlab are users' code as much as anybody's."""
    return filename.startswith((_GRADLAB, _TORCH)) and not filename.startswith(_MODELS)


def call_place() -> str:
    """`file:line` of the nearest frame outside torch and gradlab: where in the user's code the op is called."""
    frame = sys._getframe(1)
    while frame is not None and is_internal(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
