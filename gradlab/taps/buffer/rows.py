"""Slots: the float32 places on the device into which the hooks of a step write, and their one copy to the host.

A **row** holds one slot a part of every watched tensor. Each forward pass of a step writes into a row of its own, so
that micro-batches never overwrite each other and nothing needs to be added up on the device. Rows are reused step after
step; the copy to the host is ordered after the writes by the stream itself. Which small tensors wait to be reduced
together is `gather`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from gradlab.hooks.interpreter import own_ops
from gradlab.stats import LINEAR, LONG, PARTS, WIDTHS, Part, PartError, dense_values, norm_into
from gradlab.taps.buffer.batching import (
    MOST_ELEMENTS,
    NEVER,
    SAFE,
    TRIAL,
    Grouping,
    Groupings,
    Waiting,
    apart,
    can_wait,
    norms_of,
)

if TYPE_CHECKING:
    from gradlab.taps.buffer.finished import Finished, Sums

_vector_norm = torch.linalg.vector_norm
NORM_IN_ONE = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""Dtypes whose norm torch reduces in float32 straight into a slot."""


NO_ELEMENTS = -1
"""Stands in the counts of elements for a tensor that was seen and is empty; 0 stands for none that was seen."""


@dataclass(slots=True, eq=False)
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
    waits: int
    """Whether its small tensors wait to be reduced together: `gather.SAFE`, `TRIAL` or `NEVER`."""


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
        waits = TRIAL if is_norm and quantity in ("output", "output_grad") else NEVER
        entry = Entry(len(self.entries), self.width, parts, functions, widths, is_norm, site, quantity, waits)
        self.width += sum(widths)  # before the entry is there: another thread may let its row grow meanwhile
        self.entries.append(entry)
        return entry


class Row:
    """One row of slots on the device, and how many elements each entry was computed from (0: nothing was written).

    A row that is one of very many is packed while nobody writes to it: a view a slot takes a hundred times as much
    memory as the slot. The next write unpacks it.
    """

    __slots__ = (
        "chunks", "device", "finished", "groupings", "layout", "numel", "packed", "room", "small", "trials", "views",
        "waiting",
    )  # fmt: skip

    def __init__(self, layout: Layout, device: torch.device, groupings: Groupings | None = None) -> None:
        self.layout = layout
        self.device = device
        self.groupings = Groupings() if groupings is None else groupings
        self.small = can_wait(device)
        self.chunks: list[Tensor] = []
        self.views: list[Tensor] = []
        self.numel: list[int] = []
        self.waiting: list[Waiting] = []
        """Small tensors that are to be reduced together."""
        self.room = MOST_ELEMENTS.get(device.type, 0)
        """How many more elements may wait."""
        self.trials: list[tuple[list[Entry], Tensor]] = []
        """Norms of tensors that did wait, to be compared with those that were taken at once."""
        self.packed: list[int] | None = None
        """The counts of elements of a packed row."""
        self.finished: Finished | None = None
        """Of the row of a step: what passes have written that are over."""
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
        """The opposite."""
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
            if 0 < count <= self.small and entry.index < len(self.numel):
                if entry.waits == SAFE:
                    self.waiting.append((entry, tensor, tensor._version))
                    self.numel[entry.index] = count
                    self.room -= count
                    if self.room < 0:
                        self.flush()
                    return
                self._try_to_wait(entry, tensor, count)
        self.write_now(entry, tensor)

    def _try_to_wait(self, entry: Entry, tensor: Tensor, count: int) -> None:
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
        self.room = MOST_ELEMENTS.get(self.device.type, 0)
        with own_ops():
            entries, tensors, changed = apart(waiting)
            for entry in changed:
                self._give_up(entry)
            if not entries:
                return
            try:
                self._reduce_together(entries, tensors)
            except (RuntimeError, TypeError):
                self._reduce_apart(entries, tensors)

    def _give_up(self, entry: Entry) -> None:
        """A tensor cannot be read any more, or not with the others: those of its site never wait again."""
        if entry.waits == SAFE:
            self.numel[entry.index] = 0
        entry.waits = NEVER

    def _reduce_together(self, entries: list[Entry], tensors: list[Tensor]) -> None:
        grouping, norms = norms_of(entries, tensors, self.groupings)
        ordered = grouping.ordered(entries)
        if any([entry.waits != SAFE for entry in entries]):
            self.trials.append((ordered, norms))
            for number, entry in enumerate(ordered):
                if entry.waits == SAFE:
                    self.views[entry.start].copy_(norms[number])
        else:
            self.put(grouping, norms)

    def put(self, grouping: Grouping, norms: Tensor) -> None:
        """Write results, in the order of their grouping, into their slots."""
        if len(self.chunks) == 1:
            self.chunks[0].index_copy_(0, grouping.slots(self.device), norms)
        else:
            torch._foreach_copy_([self.views[start] for start in grouping.starts], list(norms.unbind()))

    def _reduce_apart(self, entries: list[Entry], tensors: list[Tensor]) -> None:
        """For tensors that turn out to be of several kinds or devices."""
        for entry, tensor in zip(entries, tensors, strict=True):
            if entry.waits != SAFE:
                entry.waits = NEVER  # Its norm has been taken at once.
                continue
            try:
                self.write_now(entry, tensor)
            except (RuntimeError, TypeError):
                self._give_up(entry)  # On the next step it fails by itself, and is reported.

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
        self.finished = None
        self.numel = [0] * len(self.layout.entries)
        self.drop_waiting()
        self.trials = []

    def drop_waiting(self) -> None:
        """Let go of the tensors that wait."""
        self.waiting = []
        self.room = MOST_ELEMENTS.get(self.device.type, 0)

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


class Rows:
    """A layout, and the rows of it that are free."""

    def __init__(self) -> None:
        self.layout = Layout()
        self.free: list[Row] = []
        self.groupings = Groupings()

    def take(self, device: torch.device) -> Row:
        """A row in which nothing is written yet. One that grew in pieces is replaced by one in one piece."""
        while self.free:
            row = self.free.pop()
            if len(row.chunks) == 1 and row.width == self.layout.width and row.device == device:
                row.forget()
                return row
        return Row(self.layout, device, self.groupings)

    def give_back(self, rows: Sequence[Row]) -> None:
        """Rows whose copy is under way may be written again: the stream keeps the order."""
        for row in rows:
            row.drop_waiting()
        self.free.extend(rows[: max(0, 64 - len(self.free))])


class Transfer:
    """A tensor on its way to the host, read when it is done."""

    def __init__(self, chunks: Sequence[Tensor]) -> None:
        """Send the chunks, all of one dtype and device, as one."""
        self.event: torch.cuda.Event | None = None
        if not chunks:
            self.host = torch.empty(0, dtype=torch.float32, device="cpu")
        elif chunks[0].device.type == "cuda":
            joined = chunks[0] if len(chunks) == 1 else torch.cat(list(chunks))
            self.host = torch.empty(len(joined), dtype=joined.dtype, pin_memory=True)
            self.host.copy_(joined, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.host = chunks[0].clone() if len(chunks) == 1 else torch.cat(list(chunks))

    def done(self) -> bool:
        """Whether the values can be read without waiting."""
        return self.event is None or self.event.query()

    def values(self) -> np.ndarray:
        """[n], of the tensor's dtype; waits for the transfer where it is still under way."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.numpy()


class HostCopy:
    """The slots of some rows on their way to the host."""

    def __init__(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.flush()
        self.numel: list[list[float]] = [list(row.counts) for row in rows]
        self.sums: Sums | None = None
        """What passes have written that were over before the end of the step, once `rows` has been called."""
        self._finished = rows[0].finished if rows else None
        self._widths = [row.width for row in rows]
        self._trials = [(number, entries) for number, row in enumerate(rows) for entries, _ in row.trials]
        chunks = [chunk for row in rows for chunk in row.chunks]
        self._transfer = Transfer(chunks + [norms for row in rows for _, norms in row.trials])

    def done(self) -> bool:
        """Whether the values can be read without waiting."""
        return self._transfer.done() and (self._finished is None or self._finished.done())

    def rows(self) -> list[np.ndarray]:
        """One array a row, [slots]; waits for the transfer where it is still under way.

        After the row of the step comes that of the passes that were over before its end, where there are any.
        """
        rows = self._own_rows()
        if self._finished is not None:
            self.sums, self._finished = self._finished.total(), None
            if self.sums is not None:
                self.numel[1:1] = self.sums.numel
        return rows if self.sums is None else [rows[0], *self.sums.rows(), *rows[1:]]

    def _own_rows(self) -> list[np.ndarray]:
        values = self._transfer.values()
        if not self._trials and len(self._widths) == 1:
            return [values]
        widths = [*self._widths, *(len(entries) for _, entries in self._trials)]
        pieces = np.split(values, np.cumsum(widths)[:-1])
        rows, tried = pieces[: len(self._widths)], pieces[len(self._widths) :]
        for (number, entries), norms in zip(self._trials, tried, strict=True):
            _judge(entries, rows[number], norms)
        self._trials = []
        return rows


def _judge(entries: Sequence[Entry], row: np.ndarray, waited: np.ndarray) -> None:
    """Tensors may wait whose norm was the same at their end of the wait as at once: nobody had written to them."""
    at_once = row[[entry.start for entry in entries]]
    same = np.isclose(waited, at_once, rtol=1e-3, atol=0.0, equal_nan=True)
    for entry, is_same in zip(entries, same, strict=True):
        if entry.waits == TRIAL:
            entry.waits = SAFE if is_same else NEVER


def slots_of(part: str, entries: Sequence[Entry]) -> np.ndarray:
    """[entries] int64, where a part lies in a row; [entries, bins] of a histogram."""
    starts = np.array([e.start + sum(e.widths[: e.parts.index(part)]) for e in entries])
    width = WIDTHS.get(part, 1)
    return starts if width == 1 else starts[:, None] + np.arange(width)
