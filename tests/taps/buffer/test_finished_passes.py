"""Merged rows hold the statistics of the concatenation, whatever the order in which they arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlab.taps.buffer.finished_passes import FinishedPasses
from gradlab.taps.buffer.layout import Layout
from gradlab.taps.buffer.rows import Row
from gradlab.taps.buffer.transfer import HostCopy

PARTS = ("norm", "sum", "spread", "min", "max", "nonzero")


def row_of(layout: Layout, x: Tensor) -> Row:
    row = Row(layout, torch.device("cpu"))
    for entry in layout.entries:
        row.write_now(entry, x)
    return row


@pytest.mark.parametrize("sizes", [[6], [1, 1, 4], [2, 3, 1]])
def test_many_rows_merge_into_the_row_of_their_concatenation(sizes: list[int]) -> None:
    layout = Layout()
    layout.add("a", "output", PARTS)
    layout.add("a", "weight_grad@micro", ("norm",))
    finished = FinishedPasses(layout)
    xs = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).unbind()
    start = 0
    for size in sizes:
        finished.add(HostCopy([row_of(layout, x) for x in xs[start : start + size]]))
        start += size
    merged = finished.merged()
    assert merged is not None
    whole = row_of(layout, torch.stack(xs))
    (row,) = merged.rows()
    np.testing.assert_allclose(row[: len(PARTS)], whole.chunks[0].numpy()[: len(PARTS)], rtol=1e-5)
    assert merged.numel == [[48.0, 8.0]]
    assert row[-1] == pytest.approx(xs[-1].norm().item())  # of single backwards the last one
    assert merged.squares[-1] == pytest.approx(torch.stack(xs).square().sum().item())
    assert merged.times.tolist() == [6, 6]


def test_passes_that_no_optimizer_has_used_can_be_forgotten() -> None:
    layout = Layout()
    layout.add("a", "output", ("norm",))
    finished = FinishedPasses(layout)
    x = torch.ones(4)
    finished.add(HostCopy([row_of(layout, x)]))
    finished.mark_used()
    finished.add(HostCopy([row_of(layout, 2 * x)]))
    finished.forget_unused()
    merged = finished.merged()
    assert merged is not None and merged.rows()[0].tolist() == [2.0]
