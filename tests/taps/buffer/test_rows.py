"""A row by itself: what is written is there, now or at the flush, whatever becomes of the row meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradlab.taps.buffer.layout import NEVER, SAFE, TRIAL, Layout
from gradlab.taps.buffer.rows import Row, RowPool
from gradlab.taps.buffer.transfer import HostCopy

CPU = torch.device("cpu")


def tensors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4 + number % 2, 3, generator=generator) for number in range(count)]


def test_a_tensor_on_another_device_is_reduced_there_and_its_result_copied() -> None:
    layout = Layout()
    entry = layout.add("a", "output", ("norm", "hist", "min"))
    row, x = Row(layout, torch.device("cpu")), torch.randn(100)
    row._reduce_elsewhere(entry, x)
    elsewhere = torch.cat([view[None] for view in row.views]).clone()
    row.write(entry, x)
    assert torch.equal(elsewhere, torch.cat([view[None] for view in row.views]))


def test_small_tensors_that_wait_have_the_norms_of_those_that_do_not() -> None:
    layout = Layout()
    entries = [layout.add(str(number), "output", ("norm",)) for number in range(6)]
    for entry in entries:
        entry.waits = SAFE
    row, values = Row(layout, CPU), tensors(6)
    for entry, x in zip(entries, values, strict=True):
        row.write(entry, x)
    row.flush()
    assert [view.item() for view in row.views] == pytest.approx([x.norm().item() for x in values])
    assert row.numel == [x.numel() for x in values]


@pytest.mark.parametrize("is_changed", [False, True])
def test_an_entry_on_trial_waits_only_if_nobody_writes_to_its_tensor(is_changed: bool) -> None:
    layout = Layout()
    entry, (x,) = layout.add("a", "output", ("norm",)), tensors(1)
    row = Row(layout, CPU)
    assert entry.waits == TRIAL
    row.write(entry, x)
    want = x.norm().item()
    if is_changed:
        x.data.mul_(2)  # behind autograd's back: the version stays
    (values,) = HostCopy([row]).rows()
    assert values[0] == pytest.approx(want)
    assert entry.waits == (NEVER if is_changed else SAFE)


def test_a_tensor_that_is_written_to_while_it_waits_has_no_value_and_waits_no_more() -> None:
    layout = Layout()
    entry, (x,) = layout.add("a", "output", ("norm",)), tensors(1)
    entry.waits, row = SAFE, Row(layout, CPU)
    row.write(entry, x)
    x.add_(1)
    row.flush()
    assert row.numel == [0] and entry.waits == NEVER


def test_a_packed_row_keeps_what_was_written_and_can_be_written_to() -> None:
    layout = Layout()
    first = layout.add("a", "weight", ("norm", "sum"))
    row, (x, y) = Row(layout, CPU), tensors(2)
    row.write(first, x)
    row.pack()
    assert row.written() == [first] and not row.views
    second = layout.add("b", "weight", ("norm",))
    row.write(second, y)
    (values,) = HostCopy([row]).rows()
    assert values.tolist() == pytest.approx([x.norm().item(), x.sum().item(), y.norm().item()])


def test_a_row_that_grew_in_pieces_is_not_used_again() -> None:
    layout = Layout()
    layout.add("a", "weight", ("norm",))
    pool = RowPool(layout)
    row = pool.take(CPU)
    pool.give_back([row])
    assert pool.take(CPU) is row
    layout.add("b", "weight", ("norm",))
    row.grow()
    pool.give_back([row])
    assert pool.take(CPU) is not row
