"""Finished passes: forward passes of a step whose autograd graph is freed, so that no backward can reach them any more.

Their rows go to the host during the step, some hundreds at a time, and are merged into one row as they arrive, by the
same formulas that combine the rows of a few passes at the end of a step. That bounds the memory of a step of very many
forwards. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gradlab.stats.combine import combine
from gradlab.stats.parts import PARTS
from gradlab.taps.buffer.layout import NO_ELEMENTS, Entry, Layout, slots_of


class SentRows(Protocol):
    """Rows that are on their way to the host (`transfer.HostCopy`), or merged there (`MergedRows`)."""

    @property
    def numel(self) -> Sequence[Any]:
        """For each row, the number of elements of each entry."""

    def done(self) -> bool:
        """Whether the values can be read without waiting."""

    def rows(self) -> list[np.ndarray]:
        """[slots] of each."""


class MergedRows:
    """The rows of many passes as one row."""

    def __init__(self, row: np.ndarray, numel: list[float], squares: np.ndarray, times: np.ndarray) -> None:
        self.numel = [numel]
        self._row = row
        self.squares = squares
        """[slots] float64, the squares of all rows added up: of the norms of single backwards, for the noise scale."""
        self.times = times
        """[entries] float64, how many rows have a value."""

    def done(self) -> bool:
        """The values are here."""
        return True

    def rows(self) -> list[np.ndarray]:
        """[slots] float64, the only one."""
        return [self._row]


class FinishedPasses:
    """Collects the rows of finished passes, in the order of their forwards."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._batches: list[SentRows] = []
        self._num_used = 0
        """How many of the batches come first whose gradients an optimizer has used: these stay whatever happens."""

    def add(self, rows: SentRows) -> None:
        """Take over rows that are on their way to the host."""
        self._batches.append(rows)
        self._batches = [
            *self._merge_arrived(self._batches[: self._num_used]),
            *self._merge_arrived(self._batches[self._num_used :]),
        ]
        self._num_used = min(self._num_used, 1)

    def mark_used(self) -> None:
        """An optimizer has used the gradients of all these passes."""
        if all(batch.done() for batch in self._batches):
            self._batches = self._merge_arrived(self._batches)
        self._num_used = len(self._batches)

    def forget_unused(self) -> None:
        """The gradients that no optimizer has used were thrown away: these passes count as not run."""
        del self._batches[self._num_used :]

    def done(self) -> bool:
        """Whether `merged` need not wait."""
        return all(batch.done() for batch in self._batches)

    def merged(self) -> MergedRows | None:
        """All of them as one row; None where there are none."""
        return merge(self._batches, self._layout.entries) if self._batches else None

    def _merge_arrived(self, batches: list[SentRows]) -> list[SentRows]:
        """One batch in place of several, once all have arrived."""
        if len(batches) > 1 and all(batch.done() for batch in batches):
            return [merge(batches, self._layout.entries)]
        return batches


def merge(batches: Sequence[SentRows], entries: Sequence[Entry]) -> MergedRows:
    """One row in place of many: the statistics of the concatenation of what the passes have seen.

    Of single backwards, and of a user's own stat, the last row's value stays.
    """
    width, num_entries = sum(sum(entry.widths) for entry in entries), len(entries)
    arrays = [_arrays(batch, width, num_entries) for batch in batches]
    values, counts = np.concatenate([one for one, _ in arrays]), np.concatenate([one for _, one in arrays])
    row, numel = _merge_values(values, counts, entries)
    squares, times = np.zeros(width), np.zeros(num_entries)
    owners = np.repeat(np.arange(num_entries), [sum(entry.widths) for entry in entries])
    for batch, (rows, numels) in zip(batches, arrays, strict=True):
        if isinstance(batch, MergedRows):
            squares[: len(batch.squares)] += batch.squares
            times[: len(batch.times)] += batch.times
        else:
            squares += np.where(numels[:, owners] != 0, np.square(rows), 0.0).sum(0)
            times += (numels != 0).sum(0)
    return MergedRows(row, numel.tolist(), squares, times)


def _merge_values(values: np.ndarray, counts: np.ndarray, entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
    """[slots] float64 and [entries] numbers of elements, from [rows, slots] and [rows, entries]."""
    row, numel = np.zeros(values.shape[1]), counts.clip(0).sum(0)
    numel[(numel == 0) & (counts != 0).any(0)] = NO_ELEMENTS
    groups: dict[tuple[str, bool], list[Entry]] = {}
    for entry in entries:
        for part in entry.parts:
            groups.setdefault((part, entry.is_micro), []).append(entry)
    for (part, is_micro), members in groups.items():
        indices, slots = np.array([entry.index for entry in members]), slots_of(part, members)
        if is_micro or part not in PARTS:
            last = len(counts) - 1 - np.argmax(counts[::-1, indices] != 0, axis=0)
            row[slots] = values[last if slots.ndim == 1 else last[:, None], slots]
            numel[indices] = counts[last, indices]
        else:
            pieces = {one: values[:, slots_of(one, members)] for one in ("sum", part) if one in members[0].parts}
            row[slots] = combine(part, pieces, counts[:, indices].clip(0))
    return row, numel


def _arrays(batch: SentRows, width: int, num_entries: int) -> tuple[np.ndarray, np.ndarray]:
    """[rows, slots] values and [rows, entries] numbers of elements, with zeros where rows are shorter than by now."""
    rows = batch.rows()
    values, counts = np.zeros((len(rows), width)), np.zeros((len(rows), num_entries))
    for number, (row, count) in enumerate(zip(rows, batch.numel, strict=True)):
        values[number, : len(row)] = row
        counts[number, : len(count)] = count
    return values, counts
