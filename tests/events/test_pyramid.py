"""The pyramid: blocks hold exactly the extremes of the steps that they cover, at every level."""

import numpy as np
import pytest

from gradlab.events import EventWriter, read_events
from gradlab.frame import ABSENT, Schema

SITES = ("a", "b", "c")
NUM_STEPS = 1100


def values_of(num_steps, seed=0):
    values = np.random.default_rng(seed).normal(size=(num_steps, len(SITES))).astype(np.float32)
    values[7, 0], values[40, 1], values[41, 1] = np.nan, np.inf, -np.inf
    values[:600, 2] = ABSENT
    return values


def logged(folder, values, metric="weight_grad.norm"):
    writer = EventWriter(folder)
    schema = Schema(metric, SITES)
    for step, row in enumerate(values):
        writer.vectors([(schema, row)], step, 1.0)
    writer.close()
    blocks = {}
    for event in read_events(writer.path):
        head, _, size = event.tag.rpartition("/x")
        if head:
            blocks.setdefault(int(size), []).append(event)
    return blocks


@pytest.mark.parametrize("size", [32, 512])
def test_each_block_holds_the_extremes_of_its_steps(tmp_path, size):
    values = values_of(NUM_STEPS)
    blocks = logged(tmp_path, values)[size]
    assert [block.step for block in blocks] == [*range(size - 1, NUM_STEPS, size), NUM_STEPS - 1]
    first = 0
    for block in blocks:
        part = values[first : block.step + 1].astype(np.float64)
        finite = np.where(np.isfinite(part), part, np.nan)
        some = np.isfinite(part).any(0)
        expected = [np.nanmin(finite[:, some], 0), np.nanmean(finite[:, some], 0), np.nanmax(finite[:, some], 0)]
        np.testing.assert_allclose(block.value[:3, some], expected, rtol=1e-5, atol=1e-6)
        absent = values[first : block.step + 1].view(np.uint32) == ABSENT.view(np.uint32)
        np.testing.assert_array_equal(block.value[3], (~np.isfinite(part) & ~absent).sum(0))
        assert (block.value[:3, ~some].view(np.uint32) == ABSENT.view(np.uint32)).all()
        first = block.step + 1


def test_a_short_run_has_none(tmp_path):
    assert logged(tmp_path, values_of(50)[:31]) == {}


def test_histograms_have_none(tmp_path):
    writer = EventWriter(tmp_path)
    schema = Schema("weight_grad.hist", ("a",), edges=(0.0, 1.0, 2.0))
    for step in range(64):
        writer.vectors([(schema, np.ones((1, 2), np.float32)), (Schema("weight_grad.norm", ("a",)), np.ones(1))], step)
    writer.close()
    tags = {event.tag for event in read_events(writer.path) if "/x" in event.tag}
    assert tags == {Schema("weight_grad.norm", ("a",)).tag + "/x32"}


def test_a_writer_may_do_without(tmp_path):
    writer = EventWriter(tmp_path, pyramid=False)
    for step in range(64):
        writer.vectors([(Schema("weight_grad.norm", ("a",)), np.ones(1))], step)
    writer.close()
    assert all("/x" not in event.tag for event in read_events(writer.path))
