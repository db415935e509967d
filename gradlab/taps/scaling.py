"""The loss scale of a step: which GradScaler is at work, and what its scale is, on the device."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

_CALLERS = ("step", "_maybe_opt_step")
_MOST_FRAMES = 8


class LossScale:
    """Knows the GradScaler of a training, given or found by itself."""

    def __init__(self, scaler: Any = None) -> None:
        self.scaler = scaler

    def now(self) -> Tensor | None:
        """The scale that the gradients of this step's backward carry, None without one; called by an optimizer."""
        if self.scaler is None:
            self.scaler = _calling_scaler()
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        return getattr(self.scaler, "_scale", None)


def _calling_scaler() -> Any:
    """The GradScaler whose `step` is calling the optimizer, if one is."""
    frame = sys._getframe(3)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        owner = frame.f_locals.get("self") if frame.f_code.co_name in _CALLERS else None
        if isinstance(owner, torch.amp.GradScaler):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None
