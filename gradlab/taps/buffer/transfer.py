"""The copy of a step's slots to the host: one transfer for all rows, read when it has arrived.

The stream orders the copy after the writes, so that nothing here waits for the device until the values are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradlab.taps.buffer.finished_passes import FinishedPasses, MergedRows
from gradlab.taps.buffer.layout import NEVER, SAFE, TRIAL, Entry, padded
from gradlab.taps.buffer.rows import Row


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
    """The rows of a step on their way to the host.

    Args:
        rows: those of the passes that a backward can still reach; the first one is the row of the step.
        finished: the passes of the step that no backward can reach any more, where there are any.
    """

    world_size = 1

    def __init__(self, rows: Sequence[Row], finished: FinishedPasses | None = None) -> None:
        for row in rows:
            row.flush()
        self.numel: list[list[float]] = [list(row.counts) for row in rows]
        self.merged: MergedRows | None = None
        """The finished passes as one row, once `rows` has been called."""
        self._finished = finished
        self._rows: list[np.ndarray] = []
        self._widths = [row.width for row in rows]
        self._trials = [(number, entries) for number, row in enumerate(rows) for entries, _ in row.trials]
        chunks = [chunk for row in rows for chunk in row.chunks]
        self._transfer = Transfer(chunks + [norms for row in rows for _, norms in row.trials])

    def done(self) -> bool:
        """Whether the values can be read without waiting."""
        return self._transfer.done() and (self._finished is None or self._finished.done())

    def rows(self) -> list[np.ndarray]:
        """One array a row, [slots]; waits for the transfer where it is still under way.

        After the row of the step comes that of the finished passes, where there are any.
        """
        if not self._rows:
            self._rows = self._own_rows()
            self.merged = self._finished.merged() if self._finished is not None else None
            if self.merged is not None:
                self.numel[1:1] = self.merged.numel
                self._rows[1:1] = self.merged.rows()
        return self._rows

    def _own_rows(self) -> list[np.ndarray]:
        values = self._transfer.values()
        if not self._trials and len(self._widths) == 1:
            return [values]
        widths = [*self._widths, *(len(entries) for _, entries in self._trials)]
        pieces = np.split(values, np.cumsum(widths)[:-1])
        rows, tried = pieces[: len(self._widths)], pieces[len(self._widths) :]
        for (number, entries), norms in zip(self._trials, tried, strict=True):
            _end_trial(entries, rows[number], norms)
        return rows

    def micro_squares(self, indices: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The squared norms of single backwards added up, and how many these are, as `series.Copy` says it."""
        rows = self.rows()
        if len(rows) == 1:
            return None
        num_entries, width = indices.max() + 1, slots.max() + 1
        seen = np.stack([padded(np.array(one), num_entries)[indices] for one in self.numel]) != 0
        norms = np.stack([padded(row, width)[slots] for row in rows]).astype(np.float64)
        seen &= ~np.isnan(norms)  # a backward whose gradient a hook has cleaned since
        if self.merged is not None:
            seen[1] = False  # of all these one norm was left
        squares, times = np.where(seen, np.square(norms), 0.0).sum(0), seen.sum(0).astype(np.float64)
        if self.merged is not None:
            squares += padded(self.merged.squares, width)[slots]
            times += padded(self.merged.times, num_entries)[indices]
        return squares, times

    def norms_by_rank(self, indices: np.ndarray) -> None:
        """None: of one process there are no others."""


def _end_trial(entries: Sequence[Entry], row: np.ndarray, waited: np.ndarray) -> None:
    """Decide whether the tensors of entries on trial may wait: if nobody wrote to them, their norm stayed the same.

    Args:
        entries: [n] those whose tensors were reduced twice.
        row: [slots], with the norms that were taken at once.
        waited: [n] norms that were taken at the end of the wait.
    """
    at_once = row[[entry.start for entry in entries]]
    same = np.isclose(waited, at_once, rtol=1e-3, atol=0.0, equal_nan=True)
    for entry, is_same in zip(entries, same, strict=True):
        if entry.waits == TRIAL:
            entry.waits = SAFE if is_same else NEVER
