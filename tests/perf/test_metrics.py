"""The arithmetic of batch sizes and means."""

from collections import UserDict

import pytest
import torch

from gradlab.perf.metrics import BatchSize, StepMeans, batch_size_of
from gradlab.perf.phases import PHASES, StepTimes


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.ones(5, 3), 5),
        ([torch.ones(4, 2), torch.ones(9)], 4),
        ({"input_ids": torch.ones(3, 7, dtype=torch.int64)}, 3),
        (UserDict(input_ids=torch.ones(3, 7)), 3),
        ((("text", {"x": torch.ones(6)}),), 6),
        (torch.tensor(1.0), 0),
        (None, 0),
        ([], 0),
        ("text", 0),
    ],
)
def test_a_batch_of_any_form_has_its_size_counted_or_none(batch, samples):
    twice = batch_size_of((batch,)).plus(batch_size_of(((batch,), {})))
    assert twice.num_samples == 2 * samples


def test_means_are_those_of_the_steps_since_the_last_reset():
    means = StepMeans()
    times = dict.fromkeys(PHASES, 0) | {"data": 1_000_000, "forward": 3_000_000}
    for step in (7, 8):
        means.add(StepTimes(step, 4_000_000, times), BatchSize(10, 0))
    assert (means.num_steps, means.last_step) == (2, 8)
    assert means.scalars(flops_per_step=8 * 10**9, peak_tflops=4.0) == {
        "perf/step_ms": 4.0,
        "perf/data_ms": 1.0,
        "perf/forward_ms": 3.0,
        "perf/other_ms": 0.0,
        "perf/data_share": 0.25,
        "perf/samples_per_second": 2500.0,
        "perf/flops_per_step": 8e9,
        "perf/tflops_per_second": 2.0,
        "perf/mfu": 0.5,
    }
    means.reset()
    assert means.num_steps == 0
