"""Cells: a metric of some sites over a range of steps, each column one step or a pool of many.

A pooled cell keeps the least, the mean and the largest finite value and how many were not finite, so that neither a
spike nor a NaN is lost between two pixels. Belongs here: arithmetic on arrays. Does not: where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradlab.frame import ABSENT, is_absent


@dataclass(frozen=True)
class Cells:
    """Columns of steps by sites. A cell without a value has NaN in `mean`, `low` and `high`, and 0 in `bad`."""

    first: np.ndarray
    """[columns] int64: the first step of each."""
    last: np.ndarray
    """[columns] int64: the last step of each."""
    low: np.ndarray
    """[columns, sites] float32."""
    mean: np.ndarray
    """[columns, sites] float32; of a column of one step the value itself, infinite or NaN as it may be."""
    high: np.ndarray
    """[columns, sites] float32."""
    bad: np.ndarray
    """[columns, sites] uint32: how many values were not finite."""

    @property
    def single(self) -> bool:
        """Whether every column is one step, so that low, mean and high are the same."""
        return self.low is self.mean

    def __len__(self) -> int:
        return len(self.first)

    def columns(self, which: np.ndarray | slice) -> Cells:
        """Some of the columns."""
        mean = self.mean[which]
        low, high = (mean, mean) if self.single else (self.low[which], self.high[which])
        return Cells(self.first[which], self.last[which], low, mean, high, self.bad[which])

    def sites(self, which: Sequence[int] | np.ndarray) -> Cells:
        """Some of the sites."""
        mean = self.mean[:, which]
        low, high = (mean, mean) if self.single else (self.low[:, which], self.high[:, which])
        return replace(self, low=low, mean=mean, high=high, bad=self.bad[:, which])


def from_values(steps: np.ndarray, values: np.ndarray) -> Cells:
    """One column a step, from [steps, sites] as they were logged."""
    values = np.asarray(values, np.float32)
    bad = np.zeros(values.shape, np.uint32)
    unfinite = ~np.isfinite(values)
    if unfinite.any():
        bad[unfinite & ~is_absent(values)] = 1
    return Cells(steps, steps, values, values, values, bad)


def from_blocks(steps: np.ndarray, blocks: np.ndarray) -> Cells:
    """One column a block of the pyramid, from [blocks, 4, sites] with the last step of each."""
    first = np.concatenate([steps[:1] - (steps[1] - steps[0] if len(steps) > 1 else 1), steps[:-1]]) + 1
    first = np.maximum(first, np.minimum(0, steps[0]))
    bad = np.nan_to_num(blocks[:, 3]).astype(np.uint32)
    return Cells(first, steps, blocks[:, 0], blocks[:, 1], blocks[:, 2], bad)


def join(parts: Sequence[Cells]) -> Cells:
    """Columns one after the other."""
    if len(parts) == 1:
        return parts[0]
    first, last, mean, bad = (np.concatenate([getattr(p, n) for p in parts]) for n in ("first", "last", "mean", "bad"))
    if all(part.single for part in parts):
        return Cells(first, last, mean, mean, mean, bad)
    low, high = (np.concatenate([getattr(part, name) for part in parts]) for name in ("low", "high"))
    return Cells(first, last, low, mean, high, bad)


def within(cells: Cells, start: int | None, end: int | None) -> Cells:
    """The columns that meet the steps from `start` to `end`."""
    chosen = np.ones(len(cells), bool)
    if start is not None:
        chosen &= cells.last >= start
    if end is not None:
        chosen &= cells.first <= end
    return cells if chosen.all() else cells.columns(chosen)


def merge(parts: Sequence[tuple[Sequence[str], Cells]], sites: Sequence[str]) -> Cells:
    """Several sets of sites as one, for a run that logged a metric under several schemas.

    A site that is in two of them at one step has the value of the later; where only one has a value, that.
    """
    if len(parts) == 1 and list(parts[0][0]) == list(sites):
        return parts[0][1]
    place = {site: index for index, site in enumerate(sites)}
    last = np.unique(np.concatenate([cells.last for _, cells in parts]))
    shape = (len(last), len(sites))
    first = np.full(len(last), np.iinfo(np.int64).max)
    low, mean, high = (np.full(shape, ABSENT, np.float32) for _ in range(3))
    bad = np.zeros(shape, np.uint32)
    for names, cells in parts:
        rows = np.searchsorted(last, cells.last)
        first[rows] = np.minimum(first[rows], cells.first)
        at = np.ix_(rows, np.array([place[name] for name in names], np.int64))
        present = ~is_absent(cells.mean) | (cells.bad > 0)
        for target, values in ((low, cells.low), (mean, cells.mean), (high, cells.high), (bad, cells.bad)):
            target[at] = np.where(present, values, target[at])
    if all(cells.single for _, cells in parts):
        low = high = mean
    return Cells(first, last, low, mean, high, bad)


def pool(cells: Cells, num_columns: int, start: int | None = None, end: int | None = None) -> Cells:
    """At most `num_columns` columns, of equal widths in steps. Nothing is lost: see the head of this file."""
    if len(cells) <= num_columns:
        return cells
    low = int(cells.first[0]) if start is None else start
    high = int(cells.last[-1]) if end is None else end
    width = max(1.0, (high - low + 1) / num_columns)
    bins = np.clip(((cells.last - low) / width).astype(np.int64), 0, num_columns - 1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(bins)) + 1])
    lengths = np.diff(np.append(starts, len(bins)))
    return Cells(
        cells.first[starts],
        cells.last[starts + lengths - 1],
        *_pooled(cells, starts, axis=0),
    )


def pool_sites(cells: Cells, num_rows: int) -> tuple[Cells, np.ndarray]:
    """At most `num_rows` rows of neighbouring sites, and the index of the first site of each."""
    num_sites = cells.mean.shape[1]
    if num_sites <= num_rows:
        return cells, np.arange(num_sites)
    starts = np.unique(np.arange(num_rows) * num_sites // num_rows)
    return Cells(cells.first, cells.last, *_pooled(cells, starts, axis=1)), starts


def _pooled(cells: Cells, starts: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """low, mean, high and bad of groups of neighbours."""
    bad = np.add.reduceat(cells.bad, starts, axis=axis)
    finite = np.isfinite(cells.mean)
    if finite.all():
        low, high = np.minimum.reduceat(cells.low, starts, axis), np.maximum.reduceat(cells.high, starts, axis)
        sizes = np.diff(np.append(starts, cells.mean.shape[axis]))
        mean = np.add.reduceat(cells.mean, starts, axis, dtype=np.float64)
        mean /= sizes[:, None] if axis == 0 else sizes
        return low, mean.astype(np.float32), high, bad
    number = np.add.reduceat(finite, starts, axis=axis, dtype=np.int64)
    low = np.minimum.reduceat(np.where(np.isfinite(cells.low), cells.low, np.inf), starts, axis)
    high = np.maximum.reduceat(np.where(np.isfinite(cells.high), cells.high, -np.inf), starts, axis)
    total = np.add.reduceat(np.where(finite, cells.mean, 0), starts, axis, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total / number).astype(np.float32)
    nothing = number == 0
    low, high = (np.where(nothing, np.float32(np.nan), values).astype(np.float32) for values in (low, high))
    return low, mean, high, bad
