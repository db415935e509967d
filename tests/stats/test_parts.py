"""Single parts at the edges of what their arithmetic can do."""

from __future__ import annotations

import torch

from gradlab.stats.parts import HIST_EDGES, PARTS


def test_a_bin_counts_beyond_what_float32_can_count_one_by_one() -> None:
    count = (1 << 24) + (1 << 20)
    out = torch.zeros(len(HIST_EDGES) - 1)
    PARTS["hist"](torch.ones(count, dtype=torch.bfloat16).view(1 << 20, -1), out)
    assert out.sum() == out[48] == count
