"""The cosine between a tensor and itself one logged step ago: the one part that remembers anything."""

from __future__ import annotations

import torch
from torch import Tensor


class CosineWithPrevious:
    """The part of the stat `cosine`: the angle to the same tensor of the previous logged step. Keeps a copy of it.

    `cos = <x, y> / (‖x‖ ‖y‖)` over all elements; NaN on the first step and where the shape has changed.
    """

    def __init__(self) -> None:
        self._previous: Tensor | None = None
        self._current: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._current = x.detach().clone()
        y = self._previous
        if y is None or y.shape != x.shape:
            out.fill_(torch.nan)
        else:
            out.copy_(torch.cosine_similarity(x.flatten(), y.flatten(), dim=0, eps=torch.finfo(x.dtype).tiny))

    def advance(self) -> None:
        """The step has ended."""
        self._previous, self._current = self._current, None
