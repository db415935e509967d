"""Numbers on their way to the host: a few results on devices, read once they have arrived, without a wait.

Belongs here: gathering named results of any shape and device, and their transfer. Does not: what they mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from torch import Tensor

from gradlab.taps.buffer.transfer import Transfer


class Numbers:
    """Gathers results by key, then sends them: one transfer a device."""

    def __init__(self) -> None:
        self._parts: dict[torch.device, list[tuple[Hashable, Tensor]]] = {}
        self._sent: list[tuple[list[tuple[Hashable, torch.Size]], Transfer]] = []
        self._values: dict[Hashable, np.ndarray] | None = None

    def add(self, key: Hashable, value: Tensor) -> None:
        """Take a result of any shape; it is copied by `send`."""
        self._parts.setdefault(value.device, []).append((key, value.detach()))

    def send(self) -> Numbers:
        """Begin the transfer. What is added to the tensors later does not matter any more."""
        for parts in self._parts.values():
            flat = [value.to(torch.float32).reshape(-1) for _, value in parts]
            self._sent.append(([(key, value.shape) for key, value in parts], Transfer([torch.cat(flat)])))
        self._parts.clear()
        return self

    def done(self) -> bool:
        """Whether all of them can be read without a wait."""
        return all(transfer.done() for _, transfer in self._sent)

    def values(self) -> Mapping[Hashable, np.ndarray]:
        """By key, float64 arrays of the shapes that were given; waits for what is still under way."""
        if self._values is not None:
            return self._values
        found: dict[Hashable, np.ndarray] = {}
        for shapes, transfer in self._sent:
            flat, start = transfer.values().astype(np.float64), 0
            for key, shape in shapes:
                found[key] = flat[start : start + shape.numel()].reshape(shape)
                start += shape.numel()
        self._values, self._sent = found, []
        return found
