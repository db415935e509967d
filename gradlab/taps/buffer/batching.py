"""Gathering: small tensors whose norms are taken together, a call for each shape instead of a call for each tensor.

A norm of a few thousand numbers costs what it costs to call: on a CPU some microseconds, on a GPU a kernel launch. So a
small tensor waits, values until the end of the forward and gradients until the end of the backward, within a bound of
bytes. Waiting is right only while nobody writes to the tensor, which is made sure of twice:

- A site starts **on trial**: its norm is taken at once and again at the end of the wait, and both are compared on the
  host when the step's values arrive anyway. It waits from then on only if they are the same. That finds whoever writes
  behind autograd's back (`x.data.clamp_()`), and ordinary in-place ops.
- The version counter of a tensor that waited is checked before its norm is taken. If it was written to after all (a
  model that takes another way at times), its value of this step is absent, and the site never waits again.
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
MOST_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 21}
"""So many elements wait at most, by the kind of device."""


def can_wait(device: torch.device) -> int:
    """Up to how many elements a tensor is small: beyond, its norm takes longer than calling for it."""
    return _SMALL.get(device.type, 0)


Waiting = tuple[Entry, Tensor, int]
"""An entry, its tensor, and the tensor's version when it came."""


def apart(waiting: Sequence[Waiting]) -> tuple[list[Entry], list[Tensor], list[Entry]]:
    """The entries and tensors that nobody has written to since they came, and the entries of the others."""
    if all([tensor._version == version for _, tensor, version in waiting]):
        return [entry for entry, _, _ in waiting], [tensor for _, tensor, _ in waiting], []
    same = [(entry, tensor) for entry, tensor, version in waiting if tensor._version == version]
    changed = [entry for entry, tensor, version in waiting if tensor._version != version]
    return [entry for entry, _ in same], [tensor for _, tensor in same], changed


class Grouping:
    """How the tensors of some entries, always the same ones in the same order, are reduced: small ones by shape."""

    __slots__ = ("_slots", "groups", "large", "long", "order", "starts")

    def __init__(self, entries: Sequence[Entry], tensors: Sequence[Tensor]) -> None:
        small = can_wait(tensors[0].device) if not tensors[0].is_cuda else 0
        groups: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        self.large: list[int] = []
        """What goes to `_foreach_norm`: on a GPU all, where it is a kernel or two; on a CPU it is a call a tensor."""
        self.long: list[int] = []
        """What is too long for torch's own norm on a CPU (`stats.norm_into`)."""
        for number, tensor in enumerate(tensors):
            if tensor.numel() <= small:
                groups.setdefault((tensor.shape, tensor.dtype), []).append(number)
            elif tensor.numel() > LONG and tensor.is_cpu:
                self.long.append(number)
            else:
                self.large.append(number)
        self.groups = list(groups.values())
        self.order = [number for group in self.groups for number in group] + self.large + self.long
        self.starts = [entries[number].start for number in self.order]
        self._slots: Tensor | None = None

    def slots(self, device: torch.device) -> Tensor:
        """[n] int64 on the device: where the results go."""
        if self._slots is None or self._slots.device != device:
            slots = torch.tensor(self.starts, device="cpu")
            on_gpu = device.type == "cuda"
            self._slots = slots.pin_memory().to(device, non_blocking=True) if on_gpu else slots.to(device)
        return self._slots

    def ordered(self, values: Sequence[T]) -> list[T]:
        """One value a tensor, as the results are ordered."""
        return [values[number] for number in self.order]

    def norms(self, tensors: Sequence[Any]) -> Tensor:
        """[n] float32, group by group.

        Raises:
            RuntimeError, TypeError, AttributeError: the shapes in a group are no longer one, or a tensor is None,
                sparse or elsewhere.
        """
        results = [_norms_of_one_shape([tensors[number] for number in group]) for group in self.groups]
        if self.large:
            norms = torch._foreach_norm([tensors[number] for number in self.large], 2, dtype=torch.float32)
            results.append(torch.stack(norms))
        if self.long:
            results.append(torch.empty(len(self.long), dtype=torch.float32, device="cpu"))
            for slot, number in zip(results[-1].unbind(), self.long, strict=True):
                norm_into(tensors[number].detach(), slot)
        return torch.cat(results) if len(results) > 1 else results[0]


def _norms_of_one_shape(tensors: list[Tensor]) -> Tensor:
    """[n] float32."""
    stacked = torch.stack(tensors)
    rows = stacked.reshape(len(tensors), -1)
    if rows.dtype is torch.float64:
        return torch.linalg.vector_norm(rows, dim=1).float()
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)


class Groupings:
    """The groupings that were worked out, by the entries that waited together."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Grouping] = {}

    def of(self, entries: Sequence[Entry], tensors: Sequence[Tensor], *, fresh: bool = False) -> Grouping:
        """The grouping of some entries, worked out on their first coming, or where their shapes have changed."""
        key = tuple([entry.index for entry in entries])
        known = self._known.get(key)
        if known is None or fresh:
            if len(self._known) >= 64:
                self._known.clear()
            known = self._known[key] = Grouping(entries, tensors)
        return known


def norms_of(entries: Sequence[Entry], tensors: Sequence[Tensor], groupings: Groupings) -> tuple[Grouping, Tensor]:
    """The norms of tensors, and how they are ordered.

    Args:
        entries: [n], whose tensors these are.
        tensors: [n] of any shapes, on one device.
        groupings: what is known of such lists.
    Returns:
        The grouping, and [n] float32 norms in its order.
    Raises:
        RuntimeError: the tensors are not of one kind or not on one device.
    """
    grouping = groupings.of(entries, tensors)
    try:
        return grouping, grouping.norms(tensors)
    except RuntimeError:
        grouping = groupings.of(entries, tensors, fresh=True)
        return grouping, grouping.norms(tensors)
