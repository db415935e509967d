"""Buckets of several ranks, added up in one process, hold the statistics of what all ranks have seen together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlab import Tap
from gradlab.taps.across_ranks import bucket
from gradlab.taps.across_ranks.bucket import NO_NORM, Bucket, Reduced
from gradlab.taps.buffer.layout import slots_of
from gradlab.taps.buffer.rows import Row
from gradlab.taps.buffer.transfer import HostCopy
from gradlab.taps.plan import Plan

SIZE = 3


def plan() -> Plan:
    """One site, whose output and single backwards are watched, of each rank too."""
    made = Plan(
        [
            Tap("a", of="output", stats=["norm", "mean", "std", "max_abs", "zeros"], per_rank=True),
            Tap("w", of="weight_grad", stage=["final", "micro"], per_rank=True),
        ]
    )
    made.target("a")
    for stage in ("final", "micro"):
        made.entry("w", "weight_grad", stage)
    return made


def batch(rank: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * rank + number)
    return torch.randn(4 + rank, 3, generator=generator) + rank


def reduced(made: Plan, rows_of: dict[int, list[Row]]) -> tuple[Reduced, bool]:
    """What all ranks together have, from the rows of each."""
    keys = [(entry.label, entry.site) for entry in made.layout.entries]
    buckets = [Bucket(keys, made, {}, rank=rank, size=SIZE) for rank in range(SIZE)]
    arrays, extremes = [], []
    for rank, one in enumerate(buckets):
        copy = HostCopy(rows_of[rank])
        array, largest = one.fill(copy.rows(), copy.numel, has_grown=rank == 1)
        arrays.append(array)
        extremes.append(largest)
    total = np.sum(arrays, axis=0)
    largest = None if extremes[0] is None else np.max(extremes, axis=0)
    return buckets[-1].read(total, largest), buckets[0].has_grown(total)


@pytest.mark.parametrize("most_gathered", [1 << 16, 0])
def test_the_sum_of_buckets_reads_as_the_row_of_the_whole_batch(
    most_gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_MOST_GATHERED", most_gathered)
    made = plan()
    output = next(entry for entry in made.layout.entries if entry.label == "output")
    micro = next(entry for entry in made.layout.entries if entry.label == "weight_grad@micro")
    rows_of, seen = {}, []
    for rank in range(SIZE):
        rows_of[rank] = [Row(made.layout, torch.device("cpu")) for _ in range(2)]
        for number, row in enumerate(rows_of[rank]):
            x = batch(rank, number)
            seen.append(x.flatten())
            row.write_now(output, x)
            if rank:
                row.write_now(micro, x)
    whole = Row(made.layout, torch.device("cpu"))
    whole.write_now(output, torch.cat(seen))
    result, has_grown = reduced(made, rows_of)
    for part in output.parts:
        slot = slots_of(part, [output])[0]
        assert result.row[slot] == pytest.approx(whole.views[slot].item(), rel=1e-5), part
    assert result.numel[output.index] == sum(x.numel() for x in seen)
    assert has_grown
    own = {int(index): norms for index, norms in zip(result.own_indices, result.own_norms.T, strict=True)}
    assert own[output.index].tolist() == pytest.approx(
        [torch.cat(seen[2 * rank : 2 * rank + 2]).norm().item() for rank in range(SIZE)]
    )
    last = [batch(rank, 1).norm().item() for rank in (1, 2)]
    assert own[micro.index].tolist() == pytest.approx([NO_NORM, *last])
    assert result.times[micro.index] == 4
    assert result.squares[micro.start] == pytest.approx(sum(x.square().sum().item() for x in seen[2:]))
