"""Packing: a step's slots on this rank as one array that is added up over ranks, and the sum made into numbers again.

Squares, sums and counts add up in float64, each rank's with the weight of what it holds. Each rank's own numbers, and
smallest and largest values, travel in the same sum: in a table with a row a rank, of which each fills in its own.
Belongs here: arithmetic on arrays. Does not: collectives (`exchange`), or when ranks agree on what is packed (`ranks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradlab.stats import LINEAR, PARTS
from gradlab.taps.buffer.finished_passes import MergedRows
from gradlab.taps.buffer.layout import NO_ELEMENTS, Entry
from gradlab.taps.plan import PARAMETER_QUANTITIES, Plan

_KINDS = {"norm": 0, "spread": 1, "min": 3, "max": 4}
_SQUARE, _SPREAD, _SUM, _MIN, _MAX, _OWN = range(6)
_MOST_GATHERED = 1 << 16
"""A table of extremes with more values than this is too large for the sum: they take a collective of their own."""
_EMPTY = 1e-9
"""Counts for a tensor that was seen and has no elements."""
_NOTHING = -1.0
"""Stands for a norm that a rank does not have."""
Key = tuple[str, str]
"""Quantity and site of an entry."""


class Packing:
    """The slots that are combined, in the order that all ranks have agreed upon."""

    def __init__(self, keys: Sequence[Key], plan: Plan, weights: Mapping[str, float], *, rank: int, size: int) -> None:
        """Pack the entries of these keys; `weights` tells what this rank's pieces of sharded parameters count for."""
        found = {(entry.quantity, entry.site): entry for entry in plan.rows.layout.entries}
        self.entries = [found[key] for key in keys]
        self.size, self.rank = size, rank
        self.num_entries = len(plan.rows.layout.entries)
        self.width = plan.rows.layout.width
        slots: list[int] = []
        kinds: list[int] = []
        owners: list[int] = []
        norms: list[int] = []
        partners: list[int] = []
        scales: list[float] = []
        for number, entry in enumerate(self.entries):
            places: dict[str, int] = {}
            slot, scale = entry.start, 1.0 / self.size if entry.quantity == "output_grad" else 1.0
            for part, width in zip(entry.parts, entry.widths, strict=True):
                places[part] = len(slots)
                kinds += [_KINDS.get(part, _SUM if part in PARTS else _OWN)] * width
                owners += [number] * width
                partners += [places.get("sum", 0)] * width
                scales += [scale if part in LINEAR else 1.0] * width
                slots += range(slot, slot + width)
                slot += width
            norms.append(places.get("norm", 0))
        self.slots, kind = np.array(slots), np.array(kinds)
        self.owners = np.array(owners)
        self.indices = np.array([entry.index for entry in self.entries])
        self.weights = np.array([_weight(entry, weights, self.size) for entry in self.entries])
        self.scales = np.array(scales)
        self.slot_weights = self.weights[self.owners]
        self.is_square = kind == _SQUARE
        self.spread, self.own = np.flatnonzero(kind == _SPREAD), np.flatnonzero(kind == _OWN)
        self.partners = np.array(partners)[self.spread]
        self.smallest, self.largest = np.flatnonzero(kind == _MIN), np.flatnonzero(kind == _MAX)
        self.extremes = np.concatenate([self.smallest, self.largest])
        self.signs = np.repeat([-1.0, 1.0], [len(self.smallest), len(self.largest)])
        micro = set(plan.metrics.get(("weight_grad@micro", "norm"), ()))
        self.micro = np.array([n for n, e in enumerate(self.entries) if e in micro], np.int64)
        self.local = np.array([n for n, e in enumerate(self.entries) if e in plan.per_rank], np.int64)
        self.micro_slots, self.local_slots = np.array(norms)[self.micro], np.array(norms)[self.local]
        # On this rank they stand in the order in which it has met them.
        self.micro_order = self.indices[self.micro].argsort()
        self.local_order = self.indices[self.local].argsort()
        # Of one backward (`micro`), and of a user's own stat, the last row speaks.
        is_micro = np.array([e.quantity.endswith("@micro") for e in self.entries], bool)
        self.only_last = is_micro[self.owners] | (kind == _OWN)
        self.local_only_last = is_micro[self.local]
        self.gathers = self.size * len(self.extremes) <= _MOST_GATHERED
        table = len(self.local) + (len(self.extremes) if self.gathers else 0)
        sizes = [len(slots), len(self.entries), len(self.micro), len(self.micro), 1, self.size * table]
        ends = np.cumsum(sizes).tolist()
        self.length = ends[-1]
        self.pieces = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.saying = self.pieces[4]
        self.last_slot, self.last_index = self.slots.max(), self.indices.max()

    # Out: what this rank adds to the sum. Most of it is skipped in the usual case, where norms are all that is wanted.

    def pack(
        self,
        rows: Sequence[np.ndarray],
        numel: Sequence[list[float]],
        *,
        grown: bool,
        finished: MergedRows | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """[n] float64 to be added up over ranks, and [extremes] of which the largest is wanted where not gathered."""
        values = np.array([_padded(row, self.last_slot)[self.slots] for row in rows], np.float64)
        counts = np.array([_padded(np.array(n, np.float64), self.last_index)[self.indices] for n in numel])
        is_empty, counts = (counts < 0).any(0), counts.clip(0)
        packed = np.zeros(self.length)
        sums, total, squares, times, said, table = [packed[piece] for piece in self.pieces]
        said[:] = grown
        largest = None
        with np.errstate(over="ignore", invalid="ignore"):
            is_there = (counts > 0)[:, self.owners]
            self._add_up(values, counts, is_there, sums)
            if len(self.micro):
                # The squared norms of this rank's backwards, added up, for the gradient noise scale.
                is_micro = counts[:, self.micro] > 0
                if finished is not None:  # many passes, merged into the second row: of their norms one is left there
                    is_micro[1] = False
                squares[:] = np.where(is_micro, np.square(values[:, self.micro_slots]), 0.0).sum(0)
                times[:] = is_micro.sum(0)
                if finished is not None:
                    places = self.slots[self.micro_slots], self.indices[self.micro]
                    squares += _padded(finished.squares, self.last_slot)[places[0]]
                    times += _padded(finished.times, self.last_index)[places[1]]
            if len(self.extremes):
                largest = np.where(is_there[:, self.extremes], values[:, self.extremes] * self.signs, -np.inf).max(0)
            if len(table):
                mine = table.reshape(self.size, -1)[self.rank]
                if len(self.local):
                    mine[: len(self.local)] = self._local(values, is_there)
                if self.gathers:
                    mine[len(self.local) :] = largest if largest is not None else ()
        total[:] = (counts.sum(0) + is_empty * _EMPTY) * self.weights
        return packed, None if self.gathers else largest

    def _add_up(self, values: np.ndarray, counts: np.ndarray, is_there: np.ndarray, sums: np.ndarray) -> None:
        """Write the sums over this rank's rows, weighted, into [slots] `sums`."""
        counted = is_there
        if len(values) > 1:
            later = is_there[::-1].cumsum(0)[::-1] - is_there
            counted = is_there & ~(self.only_last & (later > 0))
        parts = np.where(self.is_square, np.square(values), values)
        if len(self.spread):
            of = counts[:, self.owners[self.spread]].clip(min=1.0)
            parts[:, self.spread] = np.square(values[:, self.spread]) + np.square(values[:, self.partners]) / of
        sums[:] = np.where(counted, parts, 0.0).sum(0) * self.slot_weights
        if len(self.own):
            seen = counted[:, self.own]
            sums[self.own] = np.where(seen, values[:, self.own], 0.0).sum(0) * seen.any(0) / self.size
        sums[self.extremes] = 0.0

    def _local(self, values: np.ndarray, is_there: np.ndarray) -> np.ndarray:
        """[local] float64: this rank's own norms: of all its passes together, of single backwards the last one's."""
        seen = is_there[:, self.local_slots]
        squares = np.where(seen, np.square(values[:, self.local_slots]), 0.0)
        last = len(seen) - 1 - seen[::-1].argmax(0)
        squares = np.where(self.local_only_last, squares[last, np.arange(len(last))], squares.sum(0))
        return np.where(seen.any(0), np.sqrt(squares), _NOTHING)

    # Back: what the sum says.

    def unpack(self, packed: np.ndarray, extremes: np.ndarray | None) -> Whole:
        """The numbers of all ranks together."""
        result, total, squares, times, _, table = [packed[piece] for piece in self.pieces]
        result = result.copy()
        table = table.reshape(self.size, -1)
        with np.errstate(over="ignore", invalid="ignore"):
            if len(self.spread):
                mean_square = np.square(result[self.partners]) / total[self.owners[self.spread]].clip(min=1.0)
                result[self.spread] = np.sqrt((result[self.spread] - mean_square).clip(min=0.0))
            np.sqrt(result, out=result, where=self.is_square)
            if len(self.extremes):
                extremes = table[:, len(self.local) :].max(0) if extremes is None else extremes
                result[self.extremes] = extremes * self.signs
            flat = np.zeros(self.width, np.float32)
            flat[self.slots] = result * self.scales
        counts = np.zeros(self.num_entries)
        counts[self.indices] = np.where((total > 0) & (total < 0.5), NO_ELEMENTS, np.rint(total))
        micro = (squares[self.micro_order], times[self.micro_order])
        return Whole(flat, counts.tolist(), micro, table[:, self.local_order])

    def has_grown(self, packed: np.ndarray) -> bool:
        """Whether a rank had met a site by then that was not agreed upon."""
        return bool(packed[self.saying][0] > 0)


class Whole:
    """The numbers of all ranks together, of one step."""

    __slots__ = ("local", "micro", "numel", "row")

    def __init__(
        self, row: np.ndarray, numel: list[float], micro: tuple[np.ndarray, np.ndarray], local: np.ndarray
    ) -> None:
        self.row = row
        self.numel = numel
        self.micro = micro
        self.local = local


def _padded(values: np.ndarray, last: int) -> np.ndarray:
    """Zeros at the end of a row that is shorter than what was agreed upon."""
    if len(values) <= last:
        values = np.concatenate([values, np.zeros(last + 1 - len(values), values.dtype)])
    return values


def _weight(entry: Entry, weights: Mapping[str, float], size: int) -> float:
    """What a rank's piece counts for: 1 where pieces make up the whole, less where several ranks have the same."""
    quantity = entry.quantity.partition("@")[0]
    if quantity in PARAMETER_QUANTITIES:
        return weights.get(entry.site, 1.0 / size)
    return 1.0 / size if quantity == "loss_scale" else 1.0
