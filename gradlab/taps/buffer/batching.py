"""Batching: small tensors are reduced together, one call for each shape instead of one call for each tensor.

A norm of a few thousand numbers costs what it costs to call: on a CPU some microseconds, on a GPU a kernel launch. So a
small tensor waits in its row, values until the end of the forward and gradients until the end of the backward, within
a bound of elements. Waiting is right only while nobody writes to the tensor, which is made sure of twice:

- An entry starts **on trial**: its norm is taken at once and again at the end of the wait, and both are compared on the
  host when the step's values arrive anyway (`transfer`). Its tensors wait from then on only if they are the same. That
  finds whoever writes behind autograd's back (`x.data.clamp_()`), and ordinary in-place ops.
- The version counter of a tensor that waited is checked before its norm is taken. If it was written to after all (a
  model that takes another way at times), its value of this step is absent, and the entry's tensors never wait again.

Belongs here: which tensors are small, and how a list of tensors becomes a list of norms. Does not: what waits in a row,
and when it is reduced (`rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradlab.stats.norms import LONG, norm_into
from gradlab.taps.buffer.layout import Entry

T = TypeVar("T")

_SMALL = {"cpu": 1 << 14, "cuda": 1 << 20}
_MOST_WAITING = {"cpu": 1 << 18, "cuda": 1 << 21}
_MOST_KNOWN = 64
"""So many batchings are kept at most."""

Waiting = tuple[Entry, Tensor, int]
"""An entry, its tensor, and the tensor's version when it came."""


def small_numel(device: torch.device) -> int:
    """Up to how many elements a tensor is small: beyond, its norm takes longer than calling for it."""
    return _SMALL.get(device.type, 0)


def most_waiting(device: torch.device) -> int:
    """How many elements wait at most, in all tensors together."""
    return _MOST_WAITING.get(device.type, 0)


def split_changed(waiting: Sequence[Waiting]) -> tuple[list[Entry], list[Tensor], list[Entry]]:
    """The entries and tensors that nobody has written to since they came, and the entries of the others."""
    if all([tensor._version == version for _, tensor, version in waiting]):
        return [entry for entry, _, _ in waiting], [tensor for _, tensor, _ in waiting], []
    same = [(entry, tensor) for entry, tensor, version in waiting if tensor._version == version]
    changed = [entry for entry, tensor, version in waiting if tensor._version != version]
    return [entry for entry, _ in same], [tensor for _, tensor in same], changed


class Batching:
    """How the tensors of some entries, always the same ones in the same order, are reduced: small ones by shape."""

    __slots__ = ("_by_shape", "_by_torch", "_long", "_order", "_slots", "starts")

    def __init__(self, entries: Sequence[Entry], tensors: Sequence[Tensor]) -> None:
        small = small_numel(tensors[0].device) if not tensors[0].is_cuda else 0
        by_shape: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        self._by_torch: list[int] = []
        """What goes to `_foreach_norm`: on a GPU all, where it is a kernel or two; on a CPU it is a call a tensor."""
        self._long: list[int] = []
        """What is too long for torch's own norm on a CPU (`norm_into`)."""
        for number, tensor in enumerate(tensors):
            if tensor.numel() <= small:
                by_shape.setdefault((tensor.shape, tensor.dtype), []).append(number)
            elif tensor.numel() > LONG and tensor.is_cpu:
                self._long.append(number)
            else:
                self._by_torch.append(number)
        self._by_shape = list(by_shape.values())
        self._order = [number for batch in self._by_shape for number in batch] + self._by_torch + self._long
        self.starts = [entries[number].start for number in self._order]
        """The slot of each norm, in the order of `norms`."""
        self._slots: Tensor | None = None

    def slots(self, device: torch.device) -> Tensor:
        """[n] int64 on the device: the slot of each norm, in the order of `norms`."""
        if self._slots is None or self._slots.device != device:
            slots = torch.tensor(self.starts, device="cpu")
            on_gpu = device.type == "cuda"
            self._slots = slots.pin_memory().to(device, non_blocking=True) if on_gpu else slots.to(device)
        return self._slots

    def in_order(self, values: Sequence[T]) -> list[T]:
        """One value a tensor, in the order of `norms`."""
        return [values[number] for number in self._order]

    def norms(self, tensors: Sequence[Any]) -> Tensor:
        """[n] float32, shape by shape.

        Raises:
            RuntimeError, TypeError, AttributeError: the tensors of a batch are no longer of one shape, or one is None,
                sparse or elsewhere.
        """
        results = [_norms_of_one_shape([tensors[number] for number in batch]) for batch in self._by_shape]
        if self._by_torch:
            norms = torch._foreach_norm([tensors[number] for number in self._by_torch], 2, dtype=torch.float32)
            results.append(torch.stack(norms))
        if self._long:
            results.append(torch.empty(len(self._long), dtype=torch.float32, device="cpu"))
            for slot, number in zip(results[-1].unbind(), self._long, strict=True):
                norm_into(tensors[number].detach(), slot)
        return torch.cat(results) if len(results) > 1 else results[0]


def _norms_of_one_shape(tensors: list[Tensor]) -> Tensor:
    """[n] float32."""
    stacked = torch.stack(tensors)
    rows = stacked.reshape(len(tensors), -1)
    if rows.dtype is torch.float64:
        return torch.linalg.vector_norm(rows, dim=1).float()
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)


class BatchingCache:
    """The batchings that were worked out, by the entries that waited together."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Batching] = {}

    def norms(self, entries: Sequence[Entry], tensors: Sequence[Tensor]) -> tuple[Batching, Tensor]:
        """The norms of tensors, and how they are ordered.

        Args:
            entries: [n], whose tensors these are.
            tensors: [n] of any shapes, on one device.
        Returns:
            The batching, and [n] float32 norms in its order.
        Raises:
            RuntimeError: the tensors are not of one kind or not on one device.
        """
        key = tuple([entry.index for entry in entries])
        if (known := self._known.get(key)) is not None:
            try:
                return known, known.norms(tensors)
            except RuntimeError:
                pass  # their shapes may have changed
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        batching = self._known[key] = Batching(entries, tensors)
        return batching, batching.norms(tensors)
