import copy
import pickle

import pytest
import torch
from profiling.example import num_hooks
from torch import nn
from torch._dynamo.testing import CompileCounter

from gradlab.profiling.ranges import ModuleRanges, eager_modules

# Dynamo asks each input of a compiled block for its .grad, of a non-leaf tensor too.
asks_for_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x).relu()


class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("on purpose")


def test_modules_are_named_in_order_and_shared_ones_once():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared)
    assert [name for name, _ in eager_modules(model)] == ["", "0", "0.0", "0.1"]


def test_compiled_modules_are_left_out_with_what_is_inside():
    inner = nn.Sequential(nn.Linear(2, 2))
    in_place = nn.Sequential(nn.Linear(2, 2))
    in_place.compile(backend="eager")
    model = nn.Sequential(torch.compile(inner, backend="eager"), in_place, nn.ReLU())
    assert [name for name, _ in eager_modules(model)] == ["", "2"]


@asks_for_grad
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_module_is_marked_from_outside_without_another_graph(in_place):
    torch._dynamo.reset()
    counter = CompileCounter()
    block = Block()
    if in_place:
        block.compile(backend=counter)
    model = nn.Sequential(nn.Linear(2, 2), block if in_place else torch.compile(block, backend=counter))
    x = torch.ones(1, 2)
    before = model(x)
    ranges = ModuleRanges(model)
    ranges.attach()
    assert ranges.modules["[pl][module]Block (compiled): 1"].name == "1"
    with torch.profiler.profile() as profiler:
        assert torch.equal(model(x), before)
    ranges.detach()
    assert torch.equal(model(x), before) and counter.frame_count == 1
    assert "_compiled_call_impl" not in vars(model[1]) or in_place
    events = {event.name(): event for event in profiler.profiler.kineto_results.events()}
    box, parent = events["[pl][module]Block (compiled): 1"], events["[pl][module]Sequential: Sequential"]
    assert parent.start_ns() <= box.start_ns() and box.end_ns() <= parent.end_ns()
    torch._dynamo.reset()


def test_a_compiled_function_over_a_marked_model_stays_one_graph():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = torch.ones(1, 2)
    compiled = torch.compile(lambda x: model(x) * 2, backend="eager", fullgraph=True)
    before = compiled(x)
    ranges = ModuleRanges(model)
    ranges.attach()
    with torch.profiler.profile():
        during = compiled(x)
    ranges.detach()
    assert torch.equal(before, during) and torch.equal(before, compiled(x))


def test_detaching_leaves_no_hook():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    ranges = ModuleRanges(model)
    before = num_hooks(model)
    ranges.attach()
    assert num_hooks(model) > before
    ranges.detach()
    assert num_hooks(model) == before == 0


def test_a_mark_says_class_and_qualified_name():
    ranges = ModuleRanges(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    ranges.attach()
    assert list(ranges.modules) == [
        "[pl][module]Sequential: Sequential",
        "[pl][module]Sequential: 0",
        "[pl][module]Linear: 0.0",
    ]
    ranges.detach()


def test_a_forward_that_raises_closes_its_ranges():
    model = nn.Sequential(nn.Linear(2, 2), Fails())
    ranges = ModuleRanges(model)
    ranges.attach()
    with torch.profiler.profile() as profiler:
        with pytest.raises(ValueError, match="on purpose"):
            model(torch.ones(1, 2))
        torch.ones(2).cumsum(0)
    ranges.detach()
    events = {event.name(): event for event in profiler.profiler.kineto_results.events()}
    assert events["[pl][module]Fails: 1"].end_ns() <= events["aten::cumsum"].start_ns()
    assert events["[pl][module]Sequential: Sequential"].end_ns() <= events["aten::cumsum"].start_ns()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_can_be_copied_and_pickled_while_it_is_marked(clone):
    model = nn.Sequential(nn.Linear(2, 2))
    ranges = ModuleRanges(model)
    ranges.attach()
    copied = clone(model)
    with torch.profiler.profile() as profiler:
        copied(torch.ones(1, 2))
    ranges.detach()
    assert not [event for event in profiler.profiler.kineto_results.events() if event.name().startswith("[pl]")]
