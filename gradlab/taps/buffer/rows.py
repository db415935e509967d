"""A row: the float32 slots on the device into which the hooks of one forward pass and its backward write.

Each forward pass of a step writes into a row of its own, so that micro-batches never overwrite each other and nothing
needs to be added up on the device. Rows are reused step after step.

Belongs here: writing a tensor's statistics into slots, and the rows that are free. Does not: which slots there are
(`layout`), which small tensors are reduced together (`batching`), the way to the host (`transfer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gradlab.hooks.interpreter import own_ops
from gradlab.stats.norms import LONG, dense_values, norm_into
from gradlab.stats.parts import LINEAR, PartError
from gradlab.taps.buffer.batching import Batching, BatchingCache, Waiting, most_waiting, small_numel, split_changed
from gradlab.taps.buffer.layout import NEVER, NO_ELEMENTS, NORM_IN_ONE, SAFE, Entry, Layout

_MOST_FREE = 64
"""So many rows are kept for later steps at most."""
_vector_norm = torch.linalg.vector_norm  # without two look-ups a call


class Row:
    """One row of slots on the device, and how many elements each entry was computed from: 0 where nothing was written.

    A row that is one of very many is packed while nobody writes to it: a view a slot takes a hundred times as much
    memory as the slot. The next write unpacks it.
    """

    __slots__ = (
        "batchings", "chunks", "device", "layout", "numel", "packed", "room", "small_numel", "trials", "views",
        "waiting",
    )  # fmt: skip

    def __init__(self, layout: Layout, device: torch.device, batchings: BatchingCache | None = None) -> None:
        self.layout = layout
        self.device = device
        self.batchings = BatchingCache() if batchings is None else batchings
        self.small_numel = small_numel(device)
        self.chunks: list[Tensor] = []
        """The slots: one piece, and a further one for each time that the layout has grown."""
        self.views: list[Tensor] = []
        """A 0-d view of each slot; empty while the row is packed."""
        self.numel: list[int] = []
        """How many elements each entry was computed from; empty while the row is packed."""
        self.waiting: list[Waiting] = []
        """Small tensors that are to be reduced together, at `flush`."""
        self.room = most_waiting(device)
        """How many more elements may wait."""
        self.trials: list[tuple[list[Entry], Tensor]] = []
        """Norms that were taken at the end of the wait, to be compared with those that were taken at once."""
        self.packed: list[int] | None = None
        """The counts of elements of a packed row."""
        self.grow()

    @property
    def counts(self) -> list[int]:
        """How many elements each entry was computed from, packed or not."""
        return self.numel if self.packed is None else self.packed

    @property
    def width(self) -> int:
        """How many slots there are."""
        return sum(map(len, self.chunks))

    def pack(self) -> None:
        """Take as little memory as can be, until the next write."""
        if self.packed is None:
            self.flush()
            self.packed, self.numel, self.views = self.numel, [], []

    def unpack(self) -> None:
        """Make a packed row ready to be written to."""
        if self.packed is not None:
            self.numel, self.packed = self.packed, None
            self.views = [view for chunk in self.chunks for view in chunk.unbind()]

    def written(self) -> list[Entry]:
        """The entries that have a value."""
        return [entry for entry, count in zip(self.layout.entries, self.counts, strict=False) if count]

    def grow(self) -> None:
        """Room for all entries that the layout has by now, in a new chunk: written slots stay where they are."""
        self.unpack()
        count = len(self.layout.entries)  # first: another thread may be adding one, whose slots are there before it
        missing = self.layout.width - len(self.views)
        if missing > 0:
            self.chunks.append(torch.zeros(missing, dtype=torch.float32, device=self.device))
            self.views.extend(self.chunks[-1].unbind())
        self.numel.extend([0] * (count - len(self.numel)))

    def slots(self, start: int, stop: int) -> Tensor:
        """[stop - start] float32, the slots themselves; they must lie in one piece of the row."""
        for chunk in self.chunks:
            if start < len(chunk):
                return chunk[start:stop]
            start, stop = start - len(chunk), stop - len(chunk)
        raise IndexError(start)

    def write(self, entry: Entry, tensor: Tensor) -> None:
        """Reduce a tensor into its slots, on the device, without a host read; a small one with others, at `flush`."""
        if entry.waits != NEVER:
            count = tensor.numel()
            if 0 < count <= self.small_numel and entry.index < len(self.numel):
                if entry.waits == SAFE:
                    self.waiting.append((entry, tensor, tensor._version))
                    self.numel[entry.index] = count
                    self.room -= count
                    if self.room < 0:
                        self.flush()
                    return
                self._wait_on_trial(entry, tensor, count)
        self.write_now(entry, tensor)

    def _wait_on_trial(self, entry: Entry, tensor: Tensor, count: int) -> None:
        """Let a tensor wait whose norm is also taken at once."""
        if not _may_wait(tensor):
            entry.waits = NEVER
        else:
            self.waiting.append((entry, tensor, tensor._version))
            self.room -= count
            if self.room < 0:
                self.flush()

    def flush(self) -> None:
        """Reduce all that waits: a call a shape, and one write of all the results."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        self.room = most_waiting(self.device)
        with own_ops():
            entries, tensors, changed = split_changed(waiting)
            for entry in changed:
                self._never_wait_again(entry)
            if not entries:
                return
            try:
                self._reduce_together(entries, tensors)
            except (RuntimeError, TypeError):
                self._reduce_one_by_one(entries, tensors)

    def _never_wait_again(self, entry: Entry) -> None:
        """A tensor that waited cannot be read, or not with the others: those of its entry are reduced at once now."""
        if entry.waits == SAFE:
            self.numel[entry.index] = 0
        entry.waits = NEVER

    def _reduce_together(self, entries: list[Entry], tensors: list[Tensor]) -> None:
        batching, norms = self.batchings.norms(entries, tensors)
        ordered = batching.in_order(entries)
        if any([entry.waits != SAFE for entry in entries]):
            self.trials.append((ordered, norms))
            for number, entry in enumerate(ordered):
                if entry.waits == SAFE:
                    self.views[entry.start].copy_(norms[number])
        else:
            self.write_norms(batching, norms)

    def write_norms(self, batching: Batching, norms: Tensor) -> None:
        """Write [n] norms, in the order of their batching, into their slots."""
        if len(self.chunks) == 1:
            self.chunks[0].index_copy_(0, batching.slots(self.device), norms)
        else:
            torch._foreach_copy_([self.views[start] for start in batching.starts], list(norms.unbind()))

    def _reduce_one_by_one(self, entries: list[Entry], tensors: list[Tensor]) -> None:
        """For tensors that turn out to be of several kinds or devices."""
        for entry, tensor in zip(entries, tensors, strict=True):
            if entry.waits != SAFE:
                entry.waits = NEVER  # Its norm has been taken at once.
                continue
            try:
                self.write_now(entry, tensor)
            except (RuntimeError, TypeError):
                self._never_wait_again(entry)  # On the next step it fails by itself, and is reported.

    def write_now(self, entry: Entry, tensor: Tensor) -> None:
        """Reduce a tensor into its slots at once."""
        if entry.index >= len(self.numel):
            self.grow()
        try:
            self._reduce(entry, tensor)
        except RuntimeError:
            if tensor.is_meta:
                raise RuntimeError("its tensor is on the meta device and has no values") from None
            if tensor.device == self.device:
                if not _has_tangent(tensor):
                    raise
                return self._reduce(entry, tensor.detach())  # forward-mode AD does not write into `out=`
            self._reduce_elsewhere(entry, tensor)

    def _reduce(self, entry: Entry, tensor: Tensor) -> None:
        if entry.is_norm and tensor.dtype in NORM_IN_ONE and tensor.layout is torch.strided:
            x = tensor.detach() if tensor.requires_grad else tensor
            if x.numel() > LONG:
                norm_into(x, self.views[entry.start])
            else:
                _vector_norm(x, dtype=torch.float32, out=self.views[entry.start])
        else:
            x = dense_values(tensor)
            slot, bad, first = entry.start, list[str](), None
            for part, function, width in zip(entry.parts, entry.functions, entry.widths, strict=True):
                try:
                    function(x, self.views[slot] if width == 1 else self.slots(slot, slot + width))
                except Exception as error:
                    if tensor.device != self.device or tensor.is_meta:
                        raise
                    bad.append(part)
                    first = first or error
                slot += width
            if first is not None:
                if len(bad) == len(entry.parts):
                    raise first
                self.numel[entry.index] = x.numel() or NO_ELEMENTS
                raise PartError(bad, first)
        self.numel[entry.index] = x.numel() or NO_ELEMENTS

    def _reduce_elsewhere(self, entry: Entry, tensor: Tensor) -> None:
        """For a model on several devices: reduce on the tensor's own device, and copy the results over."""
        x, slot = dense_values(tensor), entry.start
        for function, width in zip(entry.functions, entry.widths, strict=True):
            result = torch.zeros(() if width == 1 else (width,), dtype=torch.float32, device=x.device)
            function(x, result)
            (self.views[slot] if width == 1 else self.slots(slot, slot + width)).copy_(result, non_blocking=True)
            slot += width
        self.numel[entry.index] = x.numel() or NO_ELEMENTS

    def rescale(self, entries: Iterable[Entry], factor: Tensor) -> None:
        """Multiply what has been written for some entries by a positive number, as if their tensors had been."""
        self.flush()
        self.unpack()
        views: list[Tensor] = []
        for entry in entries:
            slot = entry.start
            for part, width in zip(entry.parts, entry.widths, strict=True):
                if part in LINEAR and entry.index < len(self.numel) and self.numel[entry.index]:
                    views.append(self.views[slot])
                slot += width
        if views:
            torch._foreach_mul_(views, factor)

    def forget(self) -> None:
        """All entries count as not written."""
        self.unpack()
        self.numel = [0] * len(self.layout.entries)
        self.drop_waiting()
        self.trials = []

    def drop_waiting(self) -> None:
        """Let go of the tensors that wait."""
        self.waiting = []
        self.room = most_waiting(self.device)

    def forget_entries(self, entries: set[Entry]) -> None:
        """Some entries count as not written."""
        self.unpack()
        for entry in entries:
            if entry.index < len(self.numel):
                self.numel[entry.index] = 0
        self.waiting = [one for one in self.waiting if one[0] not in entries]


def _has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor carries a derivative of forward-mode AD."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _may_wait(tensor: Tensor) -> bool:
    """Whether a tensor is of the ordinary kind, whose norm can be taken together with those of others."""
    ordinary = tensor.dtype in NORM_IN_ONE or tensor.dtype is torch.float64
    if forward_ad._current_level >= 0:
        return False
    return type(tensor) is Tensor and ordinary and tensor.layout is torch.strided and not tensor.is_inference()


class RowPool:
    """The rows of one layout that are free to be written again."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._free: list[Row] = []
        self._batchings = BatchingCache()

    def take(self, device: torch.device) -> Row:
        """A row in which nothing is written yet. One that grew in pieces is replaced by one in one piece."""
        while self._free:
            row = self._free.pop()
            if len(row.chunks) == 1 and row.width == self._layout.width and row.device == device:
                row.forget()
                return row
        return Row(self._layout, device, self._batchings)

    def give_back(self, rows: Sequence[Row]) -> None:
        """Rows whose copy is under way may be written again: the stream keeps the order."""
        for row in rows:
            row.drop_waiting()
        self._free.extend(rows[: max(0, _MOST_FREE - len(self._free))])
