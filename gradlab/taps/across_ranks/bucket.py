"""A bucket: the values of a step on this rank as one float64 array, which is added up over ranks.

Squares, sums and counts add up, each rank's with the weight of what it holds. Each rank's own norms, and smallest and
largest values, travel in the same sum: in a table with a row for each rank, of which each fills in its own.

Belongs here: how rows become the array, and how the summed array becomes one row. Does not: collectives (`group`), or
when ranks agree on what is in a bucket (`reduce`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from gradlab.stats.parts import LINEAR, PARTS
from gradlab.taps.buffer.finished_passes import MergedRows
from gradlab.taps.buffer.layout import NO_ELEMENTS, Entry, padded
from gradlab.taps.plan import PARAMETER_QUANTITIES, Plan

_MOST_GATHERED = 1 << 16
"""A table of extremes with more values than this is too large for the sum: they take a collective of their own."""
_EMPTY = 1e-9
"""Counts for a tensor that was seen and has no elements."""
NO_NORM = -1.0
"""Stands for a norm that a rank does not have."""
Key = tuple[str, str]
"""Label and site of an entry."""


class How(IntEnum):
    """How the values of a slot are combined, over the rows of a rank and over ranks."""

    SQUARES = 0
    """A norm: its squares add up."""
    SPREAD = 1
    """The norm of the deviations from the mean: with the sum and the count it gives a sum of squares, which adds up."""
    SUM = 2
    MIN = 3
    MAX = 4
    MEAN = 5
    """A user's own stat, of which nothing is known: the mean over ranks of the last row's."""


_HOW = {"norm": How.SQUARES, "spread": How.SPREAD, "min": How.MIN, "max": How.MAX}

_SLOT = np.dtype(
    [
        ("slot", np.int64),  # its place in a row
        ("entry", np.int64),  # the row of its entry in the table of entries
        ("how", np.int64),  # `How` its values are combined
        ("weight", np.float64),  # what this rank's value counts for in the sum
        ("factor", np.float64),  # what the combined value is multiplied by
        ("sum", np.int64),  # of a spread: which row of this table is the sum of the same entry
        ("last_row_only", np.bool_),  # of several rows, the last one that has a value counts alone
    ]
)
_ENTRY = np.dtype(
    [
        ("index", np.int64),  # its place in a row's counts of elements
        ("weight", np.float64),  # what this rank's count counts for in the sum
        ("norm", np.int64),  # which row of the table of slots is its norm
        ("is_micro", np.bool_),  # of single backwards (stage `micro`), of which the last one is logged
        ("in_noise_scale", np.bool_),  # of single backwards whose norms the gradient noise scale is made of
        ("per_rank", np.bool_),  # every rank's own norm is wanted
    ]
)


class _Sections(NamedTuple):
    """Views of the parts of a bucket's array."""

    sums: np.ndarray
    """[slots], what adds up of each slot; 0 for extremes."""
    counts: np.ndarray
    """[entries], how many elements each was computed from."""
    squares: np.ndarray
    """[entries in the noise scale], the squared norms of all single backwards."""
    times: np.ndarray
    """[entries in the noise scale], how many single backwards these are."""
    has_grown: np.ndarray
    """[1], how many ranks had met a site that is not in the bucket."""
    by_rank: np.ndarray
    """[ranks, entries per rank + extremes], of which each rank fills in its own row."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """The values of one step, of all ranks together."""

    row: np.ndarray
    """[slots of a row] float32."""
    numel: list[float]
    """How many elements each entry of the layout was computed from."""
    squares: np.ndarray
    """[slots of a row] float64, where single backwards are in the noise scale: their squared norms added up."""
    times: np.ndarray
    """[entries of the layout] float64, how many these are."""
    own_norms: np.ndarray
    """[ranks, n] float64, each rank's own norms, `NO_NORM` where it has none."""
    own_indices: np.ndarray
    """[n] int64, the places in the layout of the entries whose norms these are."""


class Bucket:
    """The entries that are combined, in the order that all ranks have agreed upon, and the array that they make."""

    def __init__(self, keys: Sequence[Key], plan: Plan, weights: Mapping[str, float], *, rank: int, size: int) -> None:
        """Combine the entries of these keys; `weights` has what this rank's pieces of sharded parameters count for."""
        found = {(entry.label, entry.site): entry for entry in plan.layout.entries}
        self.rank, self.size = rank, size
        self.num_entries, self.width = len(plan.layout.entries), plan.layout.width
        self._slots, self._entries = _tables(
            [found[key] for key in keys],
            [_weight(label, site, weights, size) for label, site in keys],
            size,
            in_noise_scale=set(plan.metrics.get(("weight_grad@micro", "norm"), ())),
            per_rank=set(plan.per_rank),
        )
        how = self._slots["how"]
        smallest, largest = np.flatnonzero(how == How.MIN), np.flatnonzero(how == How.MAX)
        self._extremes = np.concatenate([smallest, largest])
        self._signs = np.repeat([-1.0, 1.0], [len(smallest), len(largest)])
        """Of the extremes: by these signs all of them are largest values."""
        self._is_square = how == How.SQUARES
        self._spreads, self._means = np.flatnonzero(how == How.SPREAD), np.flatnonzero(how == How.MEAN)
        self._micro = self._entries[self._entries["in_noise_scale"]]
        self._own = self._entries[self._entries["per_rank"]]
        self._sends_extremes_along = size * len(self._extremes) <= _MOST_GATHERED
        num_by_rank = len(self._own) + (len(self._extremes) if self._sends_extremes_along else 0)
        lengths = [len(how), len(keys), len(self._micro), len(self._micro), 1, size * num_by_rank]
        ends = np.cumsum(lengths).tolist()
        self._length = ends[-1]
        self._pieces = [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]

    def _sections(self, array: np.ndarray) -> _Sections:
        sections = _Sections._make(array[piece] for piece in self._pieces)
        return sections._replace(by_rank=sections.by_rank.reshape(self.size, -1))

    # Out: what this rank adds to the sum. Most of it is skipped in the usual case, where norms are all that is wanted.

    def fill(
        self,
        rows: Sequence[np.ndarray],
        numel: Sequence[list[float]],
        *,
        has_grown: bool,
        finished: MergedRows | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The array of this rank.

        Args:
            rows: [slots] of each row of this rank.
            numel: of each row the number of elements of each entry.
            has_grown: this rank has met a site that is not in the bucket.
            finished: many passes, which are merged in the second row.
        Returns:
            [n] float64 to be added up over ranks, and [extremes] float64 of which the largest over ranks is wanted,
            where they are too many to be sent along.
        """
        slots, entries = self._slots, self._entries
        values = np.array([padded(row, self.width)[slots["slot"]] for row in rows], np.float64)
        counts = np.array([padded(np.array(n, np.float64), self.num_entries)[entries["index"]] for n in numel])
        is_empty, counts = (counts < 0).any(0), counts.clip(0)
        is_there = (counts > 0)[:, slots["entry"]]
        array, extremes = np.zeros(self._length), None
        section = self._sections(array)
        section.has_grown[:] = has_grown
        section.counts[:] = (counts.sum(0) + is_empty * _EMPTY) * entries["weight"]
        with np.errstate(over="ignore", invalid="ignore"):
            self._add_up(values, counts, is_there, section.sums)
            if len(self._micro):
                self._add_micro(values, is_there, finished, section)
            if len(self._extremes):
                ours = values[:, self._extremes] * self._signs
                extremes = np.where(is_there[:, self._extremes], ours, -np.inf).max(0)
            if len(self._own):
                section.by_rank[self.rank, : len(self._own)] = self._own_norms(values, is_there)
            if extremes is not None and self._sends_extremes_along:
                section.by_rank[self.rank, len(self._own) :] = extremes
        return array, None if self._sends_extremes_along else extremes

    def _add_up(self, values: np.ndarray, counts: np.ndarray, is_there: np.ndarray, sums: np.ndarray) -> None:
        """Write the sums over this rank's rows, weighted, into [slots] `sums`."""
        slots, counted = self._slots, is_there
        if len(values) > 1:
            later = is_there[::-1].cumsum(0)[::-1] - is_there
            counted = is_there & ~(slots["last_row_only"] & (later > 0))
        terms = np.where(self._is_square, np.square(values), values)
        if len(self._spreads):
            spread = slots[self._spreads]
            of = counts[:, spread["entry"]].clip(min=1.0)
            terms[:, self._spreads] = np.square(values[:, self._spreads]) + np.square(values[:, spread["sum"]]) / of
        sums[:] = np.where(counted, terms, 0.0).sum(0) * slots["weight"]
        if len(self._means):
            seen = counted[:, self._means]
            sums[self._means] = np.where(seen, values[:, self._means], 0.0).sum(0) * seen.any(0) / self.size
        sums[self._extremes] = 0.0

    def _add_micro(
        self, values: np.ndarray, is_there: np.ndarray, finished: MergedRows | None, section: _Sections
    ) -> None:
        """The squared norms of this rank's single backwards, added up, for the gradient noise scale."""
        norms = self._micro["norm"]
        seen = is_there[:, norms]
        if finished is not None:
            seen[1] = False  # of all these one norm was left
        section.squares[:] = np.where(seen, np.square(values[:, norms]), 0.0).sum(0)
        section.times[:] = seen.sum(0)
        if finished is not None:
            section.squares[:] += padded(finished.squares, self.width)[self._slots["slot"][norms]]
            section.times[:] += padded(finished.times, self.num_entries)[self._micro["index"]]

    def _own_norms(self, values: np.ndarray, is_there: np.ndarray) -> np.ndarray:
        """[n] float64: this rank's own norms: of all its passes together, of single backwards the last one's."""
        seen = is_there[:, self._own["norm"]]
        squares = np.where(seen, np.square(values[:, self._own["norm"]]), 0.0)
        last = len(seen) - 1 - seen[::-1].argmax(0)
        squares = np.where(self._own["is_micro"], squares[last, np.arange(len(last))], squares.sum(0))
        return np.where(seen.any(0), np.sqrt(squares), NO_NORM)

    # Back: what the sum says.

    def read(self, array: np.ndarray, extremes: np.ndarray | None) -> Reduced:
        """The values of all ranks together, from the sum of their arrays, and the extremes where not sent along."""
        slots, entries, section = self._slots, self._entries, self._sections(array)
        result, counts = section.sums.copy(), section.counts
        row, numel = np.zeros(self.width, np.float32), np.zeros(self.num_entries)
        squares, times = np.zeros(self.width), np.zeros(self.num_entries)
        with np.errstate(over="ignore", invalid="ignore"):
            if len(self._spreads):
                spread = slots[self._spreads]
                mean_square = np.square(result[spread["sum"]]) / counts[spread["entry"]].clip(min=1.0)
                result[self._spreads] = np.sqrt((result[self._spreads] - mean_square).clip(min=0.0))
            np.sqrt(result, out=result, where=self._is_square)
            if len(self._extremes):
                largest = section.by_rank[:, len(self._own) :].max(0) if extremes is None else extremes
                result[self._extremes] = largest * self._signs
            row[slots["slot"]] = result * slots["factor"]
        numel[entries["index"]] = np.where((counts > 0) & (counts < 0.5), NO_ELEMENTS, np.rint(counts))
        squares[slots["slot"][self._micro["norm"]]] = section.squares
        times[self._micro["index"]] = section.times
        own_norms = section.by_rank[:, : len(self._own)]
        return Reduced(row, numel.tolist(), squares, times, own_norms, self._own["index"])

    def has_grown(self, array: np.ndarray) -> bool:
        """Whether a rank had met a site by then that is not in the bucket."""
        return bool(self._sections(array).has_grown[0] > 0)


def _tables(
    entries: Sequence[Entry],
    weights: Sequence[float],
    size: int,
    *,
    in_noise_scale: Container[Entry],
    per_rank: Container[Entry],
) -> tuple[np.ndarray, np.ndarray]:
    """The tables of slots and of entries: [slots] `_SLOT` and [entries] `_ENTRY`."""
    slots: list[tuple[float, ...]] = []
    rows: list[tuple[float, ...]] = []
    for number, (entry, weight) in enumerate(zip(entries, weights, strict=True)):
        slot = entry.start
        factor = 1.0 / size if entry.label == "output_grad" else 1.0  # of the local loss, not of the ranks' mean
        first: dict[str, int] = {}
        for part, width in zip(entry.parts, entry.widths, strict=True):
            first[part] = len(slots)
            how = _HOW.get(part, How.SUM if part in PARTS else How.MEAN)
            last = entry.is_micro or how == How.MEAN
            its_factor = factor if part in LINEAR else 1.0
            slots += [(slot + n, number, how, weight, its_factor, first.get("sum", 0), last) for n in range(width)]
            slot += width
        flags = (entry.is_micro, entry in in_noise_scale, entry in per_rank)
        rows.append((entry.index, weight, first.get("norm", 0), *flags))
    return np.array(slots, _SLOT), np.array(rows, _ENTRY)


def _weight(label: str, site: str, weights: Mapping[str, float], size: int) -> float:
    """What a rank's piece counts for: 1 where pieces make up the whole, less where several ranks have the same."""
    quantity = label.partition("@")[0]
    if quantity in PARAMETER_QUANTITIES:
        return weights.get(site, 1.0 / size)
    return 1.0 / size if quantity == "loss_scale" else 1.0
