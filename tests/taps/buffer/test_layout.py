"""Where parts lie in a row."""

from __future__ import annotations

import numpy as np

from gradlab.stats.parts import WIDTHS
from gradlab.taps.buffer.layout import Layout, padded, slots_of


def test_a_part_lies_behind_those_before_it_and_a_histogram_takes_a_slot_a_bin() -> None:
    layout, bins = Layout(), WIDTHS["hist"]
    first = layout.add("a", "output", ("norm", "hist", "sum"))
    second = layout.add("b", "output", ("hist", "sum"))
    assert slots_of("sum", [first, second]).tolist() == [1 + bins, 2 + 2 * bins]
    assert slots_of("hist", [first, second]).tolist() == [[*range(1, 1 + bins)], [*range(2 + bins, 2 + 2 * bins)]]
    assert layout.width == 3 + 2 * bins


def test_a_row_shorter_than_the_layout_is_padded_and_a_longer_one_is_left_alone() -> None:
    row = np.array([1.0, 2.0], np.float32)
    assert padded(row, 4).tolist() == [1, 2, 0, 0] and padded(row, 4).dtype == np.float32
    assert padded(row, 1) is row
