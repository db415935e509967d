"""The passes of a step whose graph is gone: no backward will reach them, so their parts are combined on the host.

That bounds the memory of a step of very many forwards: rows go to the host some hundreds at a time, and are made into
one as they arrive, by the same formulas that combine a few of them at the end of a step. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gradlab.stats import PARTS, combine
from gradlab.taps.buffer.rows import NO_ELEMENTS, HostCopy, slots_of

if TYPE_CHECKING:
    from gradlab.taps.buffer.rows import Entry, Layout, Row


class Batch(Protocol):
    """Rows on their way to the host, or what became of them."""

    @property
    def numel(self) -> Sequence[Any]:
        """For each row, the number of elements of each entry."""

    def done(self) -> bool:
        """Whether the values can be read without waiting."""

    def rows(self) -> list[np.ndarray]:
        """[slots] of each."""


class Sums:
    """Many passes as one."""

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


class Finished:
    """Collects the rows of passes that are over, in the order of their forwards."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._batches: list[Batch] = []
        self._settled = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Send rows to the host; they may be written again at once."""
        self._batches.append(HostCopy(rows))
        self._batches = [
            *self._merged(self._batches[: self._settled]),
            *self._merged(self._batches[self._settled :]),
        ]
        self._settled = min(self._settled, 1)

    def settle(self) -> None:
        """An optimizer has used the gradients of all these passes."""
        if all(batch.done() for batch in self._batches):
            self._batches = self._merged(self._batches)
        self._settled = len(self._batches)

    def forget_unsettled(self) -> None:
        """The gradients that no optimizer has used are void."""
        del self._batches[self._settled :]

    def done(self) -> bool:
        """Whether `total` need not wait."""
        return all(batch.done() for batch in self._batches)

    def total(self) -> Sums | None:
        """All of them as one; None where there are none."""
        return combined(self._batches, self._layout.entries) if self._batches else None

    def _merged(self, batches: list[Batch]) -> list[Batch]:
        """One batch in place of several, once all have arrived."""
        if len(batches) > 1 and all(batch.done() for batch in batches):
            return [combined(batches, self._layout.entries)]
        return batches


def combined(batches: Sequence[Batch], entries: Sequence[Entry]) -> Sums:
    """Rows as one: what their concatenation gives, but the last one of a user's own stat and of single backwards."""
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
        if isinstance(batch, Sums):
            squares[: len(batch.squares)] += batch.squares
            times[: len(batch.times)] += batch.times
        else:
            squares += np.where(numel[:, owners] != 0, np.square(rows), 0.0).sum(0)
            times += (numel != 0).sum(0)
    return Sums(result, total.tolist(), squares, times)


def _arrays(batch: Batch, width: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """[rows, slots] values and [rows, entries] numbers of elements, with zeros where rows are shorter than by now."""
    rows = batch.rows()
    values, counts = np.zeros((len(rows), width)), np.zeros((len(rows), entries))
    for number, (row, count) in enumerate(zip(rows, batch.numel, strict=True)):
        values[number, : len(row)] = row
        counts[number, : len(count)] = count
    return values, counts
