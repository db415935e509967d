"""Memory by category at its peak, against sizes that can be worked out by hand."""

import pytest
import torch
from profiling.example import Run, read_summary
from torch import nn
from torch.nn import functional as F

import gradlab
from gradlab.profiling.analysis.attributed_times import AttributedTimes, StepSpan
from gradlab.profiling.analysis.events import CATEGORIES, Allocation, PersistentBlock
from gradlab.profiling.analysis.memory import peak_by_category
from gradlab.profiling.persistent_memory import persistent_memory

BATCH, WIDTH, HIDDEN = 8, 16, 2048
WEIGHTS = 4 * (WIDTH * HIDDEN + HIDDEN + HIDDEN * 4 + 4)


def memory_of(tmp_path, run, step, **options):
    with gradlab.profile(tmp_path, run.model, run.optimizer, wait=2, active=2, strict=True, **options) as profiler:
        for _ in range(4):
            step()
            profiler.step()
    return read_summary(profiler.windows[0])["memory"]


def perceptron(optimizer=torch.optim.AdamW):
    run = Run(nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4)), width=WIDTH)
    run.optimizer = optimizer(run.model.parameters(), lr=0.1)
    return run


def test_the_categories_of_a_perceptron_are_as_large_as_its_tensors(tmp_path):
    run = perceptron()
    memory = memory_of(tmp_path, run, run.step)
    categories = memory["categories"]
    assert memory["device"] == "cpu" and set(categories) == set(CATEGORIES)
    assert sum(categories.values()) == memory["peak_bytes"]
    assert categories["parameters"] == WEIGHTS
    assert categories["gradients"] == pytest.approx(WEIGHTS, abs=4 * (HIDDEN * 4 + 64))  # the last one may be under way
    assert categories["optimizer_state"] == pytest.approx(2 * WEIGHTS, rel=0.01)


def test_activations_are_what_the_forward_leaves_for_the_backward(tmp_path):
    run = perceptron(torch.optim.SGD)
    run.x = run.x.repeat(200, 1)
    run.y = run.y.repeat(200)
    categories = memory_of(tmp_path, run, run.step)["categories"]
    hidden = 4 * 200 * BATCH * HIDDEN
    assert categories["activations"] == pytest.approx(hidden, rel=0.55)  # one hidden layer, its relu, or both
    assert categories["activations"] > 10 * categories["gradients"]
    assert categories["optimizer_state"] == 0


def test_gradient_accumulation_keeps_gradients_between_micro_batches(tmp_path):
    run = perceptron(torch.optim.SGD)

    def step():
        run.optimizer.zero_grad()
        for _ in range(3):
            F.cross_entropy(run.model(run.x), run.y).backward()
        run.optimizer.step()

    categories = memory_of(tmp_path, run, step)["categories"]
    assert categories["gradients"] == pytest.approx(WEIGHTS, rel=0.05)


def test_a_closure_in_the_optimizer_does_not_make_activations_temporaries(tmp_path):
    run = perceptron(torch.optim.SGD)
    run.x, run.y = run.x.repeat(200, 1), run.y.repeat(200)

    def step():
        def closure():
            run.optimizer.zero_grad()
            loss = F.cross_entropy(run.model(run.x), run.y)
            loss.backward()
            return loss

        run.optimizer.step(closure)

    hidden = 4 * 200 * BATCH * HIDDEN
    categories = memory_of(tmp_path, run, step)["categories"]
    assert categories["activations"] > 0.9 * hidden  # what the backward makes on its way is as large


def test_memory_that_was_not_recorded_is_null(run, tmp_path):
    assert memory_of(tmp_path, run, run.step, memory=False) is None


def test_persistent_memory_is_counted_once_however_often_it_is_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.append(model[0])
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    sizes = dict.fromkeys(CATEGORIES, 0)
    for device, num_bytes, category in persistent_memory(model, [optimizer]).values():
        assert device == "cpu"
        sizes[category] += num_bytes
    weights = 4 * (4 * 4 + 4 + 4 + 4)
    assert sizes["parameters"] == weights + 4 * (4 + 4) + 8  # the running statistics and their count
    assert sizes["gradients"] == weights
    assert sizes["optimizer_state"] == 2 * weights + 4 * 4  # with a count for each parameter


def step_times():
    """One step from 0 to 100: forward to 40, backward from 40 to 80, optimizer from 80."""
    return AttributedTimes(
        step_spans=[StepSpan(7, 0, 100)],
        backward_spans=[(40, 60), (62, 80)],
        optimizer_spans=[(80, 100)],
        span=(0, 100),
    )


def test_the_life_of_a_block_tells_its_category():
    def block(address, born, freed, size):
        yield Allocation(born, address, size, "cuda:0")
        if freed is not None:
            yield Allocation(freed, address, -size, "cuda:0")

    changes = [
        *block(1, 10, 50, 1000),  # an activation
        *block(2, 12, 14, 5),  # a temporary of the forward
        *block(3, 45, 300, 200),  # a gradient
        *block(4, 46, 47, 30),  # a temporary of the backward
        *block(5, 85, 90, 7),  # a temporary of the optimizer
        *block(6, 86, None, 400),  # its state, made in the first step
        Allocation(11, 77, 10**6, "cpu"),
    ]
    before = {100: PersistentBlock("cuda:0", 5000, "parameters"), 101: PersistentBlock("cpu", 9, "parameters")}
    after = {**before, 6: PersistentBlock("cuda:0", 400, "optimizer_state")}
    peak = peak_by_category(sorted(changes), before, after, step_times())
    assert (peak.device, peak.step, peak.num_bytes) == ("cuda:0", 7, 6230)
    assert peak.categories == {
        "parameters": 5000,
        "gradients": 200,
        "optimizer_state": 0,
        "activations": 1000,
        "temporaries": 30,
    }


def test_gradients_from_before_are_taken_off_when_they_are_freed():
    before = {5: PersistentBlock("cpu", 300, "gradients")}
    changes = [Allocation(1, 5, -300, "cpu"), Allocation(2, 9, 100, "cpu"), Allocation(3, 8, -50, "cpu")]
    peak = peak_by_category(changes, before, {}, step_times())
    assert peak.categories["gradients"] == 0 and peak.num_bytes == 100


def test_without_allocations_there_is_no_peak():
    assert peak_by_category([], {}, {}, step_times()) is None
