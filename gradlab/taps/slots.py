"""Slots: the float32 places on the device into which the hooks of a step write, and their one copy to the host.

A **row** holds one slot a part of every watched tensor. Each forward pass of a step writes into a row of its own, so
that micro-batches never overwrite each other and nothing needs to be added up on the device. Rows are reused step after
step; the copy to the host is ordered after the writes by the stream itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradlab.stats import PARTS, WIDTHS, Part, dense_values

_vector_norm = torch.linalg.vector_norm
NORM_IN_ONE = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""Dtypes whose norm torch reduces in float32 straight into a slot."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The slots of one quantity of one site."""

    index: int
    """Position in a row's counts of elements."""
    start: int
    """The first slot."""
    parts: tuple[str, ...]
    """What the slots hold, in order."""
    functions: tuple[Part, ...]
    """How each is computed."""
    widths: tuple[int, ...]
    """How many slots each takes."""
    is_norm: bool
    """Whether the norm is all that is wanted, which has a path of its own."""
    site: str
    quantity: str
    """`output`, `output_grad`, `weight`, `weight_grad`, `update`, with `@stage` where it is not `final`."""


class Layout:
    """Gives out slots. It only grows; entries keep their place."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.width = 0

    def add(self, site: str, quantity: str, parts: tuple[str, ...], own: Mapping[str, Part] | None = None) -> Entry:
        """New slots for a quantity of a site; `own` has the parts that are the user's."""
        functions = tuple(PARTS[part] if part in PARTS else (own or {})[part] for part in parts)
        widths = tuple(WIDTHS.get(part, 1) for part in parts)
        is_norm = parts == ("norm",)
        entry = Entry(len(self.entries), self.width, parts, functions, widths, is_norm, site, quantity)
        self.entries.append(entry)
        self.width += sum(widths)
        return entry


class Row:
    """One row of slots on the device, and how many elements each entry was computed from (0: nothing was written)."""

    __slots__ = ("chunks", "device", "layout", "numel", "views")

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.device = device
        self.chunks: list[Tensor] = []
        self.views: list[Tensor] = []
        self.numel: list[int] = []
        self.grow()

    def grow(self) -> None:
        """Room for all entries that the layout has by now, in a new chunk: written slots stay where they are."""
        missing = self.layout.width - len(self.views)
        if missing > 0:
            self.chunks.append(torch.zeros(missing, dtype=torch.float32, device=self.device))
            self.views.extend(self.chunks[-1].unbind())
        self.numel.extend([0] * (len(self.layout.entries) - len(self.numel)))

    def slots(self, start: int, stop: int) -> Tensor:
        """[stop - start] float32, the slots themselves; they must lie in one piece of the row."""
        for chunk in self.chunks:
            if start < len(chunk):
                return chunk[start:stop]
            start, stop = start - len(chunk), stop - len(chunk)
        raise IndexError(start)

    def write(self, entry: Entry, tensor: Tensor) -> None:
        """Reduce a tensor into its slots, on the device, without a host read."""
        if entry.index >= len(self.numel):
            self.grow()
        try:
            self._reduce(entry, tensor)
        except RuntimeError:
            if tensor.device == self.device:
                raise
            self._reduce_elsewhere(entry, tensor)

    def _reduce(self, entry: Entry, tensor: Tensor) -> None:
        if entry.is_norm and tensor.dtype in NORM_IN_ONE and tensor.layout is torch.strided:
            x = tensor.detach() if tensor.requires_grad else tensor
            _vector_norm(x, dtype=torch.float32, out=self.views[entry.start])
        else:
            x = dense_values(tensor)
            slot = entry.start
            for function, width in zip(entry.functions, entry.widths, strict=True):
                function(x, self.views[slot] if width == 1 else self.slots(slot, slot + width))
                slot += width
        self.numel[entry.index] = x.numel()

    def _reduce_elsewhere(self, entry: Entry, tensor: Tensor) -> None:
        """For a model on several devices: reduce on the tensor's own device, and copy the results over."""
        x, slot = dense_values(tensor), entry.start
        for function, width in zip(entry.functions, entry.widths, strict=True):
            result = torch.zeros(() if width == 1 else (width,), dtype=torch.float32, device=x.device)
            function(x, result)
            (self.views[slot] if width == 1 else self.slots(slot, slot + width)).copy_(result, non_blocking=True)
            slot += width
        self.numel[entry.index] = x.numel()

    def forget(self) -> None:
        """All entries count as not written."""
        self.numel = [0] * len(self.layout.entries)


class Rows:
    """A layout, and the rows of it that are free."""

    def __init__(self) -> None:
        self.layout = Layout()
        self.free: list[Row] = []

    def take(self, device: torch.device) -> Row:
        """A row in which nothing is written yet. One that grew in pieces is replaced by one in one piece."""
        while self.free:
            row = self.free.pop()
            if len(row.chunks) == 1 and len(row.views) == self.layout.width and row.device == device:
                row.forget()
                return row
        return Row(self.layout, device)

    def give_back(self, rows: Sequence[Row]) -> None:
        """Rows whose copy is under way may be written again: the stream keeps the order."""
        self.free.extend(rows[: max(0, 64 - len(self.free))])


class HostCopy:
    """The slots of some rows on their way to the host: one transfer, read when it is done."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.numel = [row.numel for row in rows]
        self.widths = [len(row.views) for row in rows]
        chunks = [chunk for row in rows for chunk in row.chunks]
        self.event: torch.cuda.Event | None = None
        if not chunks:
            self.host = torch.empty(0)
        elif chunks[0].device.type == "cuda":
            self.host = torch.empty(sum(self.widths), dtype=torch.float32, pin_memory=True)
            self.host.copy_(chunks[0] if len(chunks) == 1 else torch.cat(chunks), non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.host = chunks[0].clone() if len(chunks) == 1 else torch.cat(chunks)

    def done(self) -> bool:
        """Whether the values can be read without waiting."""
        return self.event is None or self.event.query()

    def rows(self) -> list[np.ndarray]:
        """One float32 array a row, [slots]; waits for the transfer where it is still under way."""
        if self.event is not None:
            self.event.synchronize()
        values = self.host.numpy()
        return np.split(values, np.cumsum(self.widths)[:-1]) if len(self.widths) > 1 else [values]
