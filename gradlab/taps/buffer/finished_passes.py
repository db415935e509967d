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


class RowsOnHost(Protocol):
    """Rows on their way to the host (`transfer.HostCopy`), or `MergedRows`."""

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
        self._batches: list[RowsOnHost] = []
        self._num_used = 0
        """How many of the batches come first whose gradients an optimizer has used: these stay whatever happens."""

    def add(self, rows: RowsOnHost) -> None:
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

    def _merge_arrived(self, batches: list[RowsOnHost]) -> list[RowsOnHost]:
        """One batch in place of several, once all have arrived."""
        if len(batches) > 1 and all(batch.done() for batch in batches):
            return [merge(batches, self._layout.entries)]
        return batches


def merge(batches: Sequence[RowsOnHost], entries: Sequence[Entry]) -> MergedRows:
    """One row in place of many: the statistics of the concatenation of what the passes have seen.

    Of single backwards, and of a user's own stat, the last row's value stays.
    """
    owners = np.repeat(np.arange(len(entries)), [sum(entry.widths) for entry in entries])
    arrays = [(batch, *_arrays(batch, len(owners), len(entries))) for batch in batches]
    values, counts = (np.concatenate([one[which] for one in arrays]) for which in (1, 2))
    result, total = np.zeros(len(owners)), counts.clip(0).sum(0)
    total[(total == 0) & (counts != 0).any(0)] = NO_ELEMENTS
    groups: dict[tuple[str, bool], list[Entry]] = {}
    for entry in entries:
        for part in entry.parts:
            groups.setdefault((part, entry.quantity.endswith("@micro")), []).append(entry)
    for (part, is_micro), members in groups.items():
        columns, slots = np.array([entry.index for entry in members]), slots_of(part, members)
        if is_micro or part not in PARTS:
            last = len(counts) - 1 - np.argmax(counts[::-1, columns] != 0, axis=0)
            result[slots] = values[last if slots.ndim == 1 else last[:, None], slots]
            total[columns] = counts[last, columns]
        else:
            pieces = {one: values[:, slots_of(one, members)] for one in ("sum", part) if one in members[0].parts}
            result[slots] = combine(part, pieces, counts[:, columns].clip(0))
    squares, times = np.zeros(len(owners)), np.zeros(len(entries))
    for batch, rows, numel in arrays:
        if isinstance(batch, MergedRows):
            squares[: len(batch.squares)] += batch.squares
            times[: len(batch.times)] += batch.times
        else:
            squares += np.where(numel[:, owners] != 0, np.square(rows), 0.0).sum(0)
            times += (numel != 0).sum(0)
    return MergedRows(result, total.tolist(), squares, times)


def _arrays(batch: RowsOnHost, width: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """[rows, slots] values and [rows, entries] numbers of elements, with zeros where rows are shorter than by now."""
    rows = batch.rows()
    values, counts = np.zeros((len(rows), width)), np.zeros((len(rows), entries))
    for number, (row, count) in enumerate(zip(rows, batch.numel, strict=True)):
        values[number, : len(row)] = row
        counts[number, : len(count)] = count
    return values, counts
