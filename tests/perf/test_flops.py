"""The count of floating point operations, against products worked out by hand and torch's own counter."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch
from perf.test_performance import watched
from profiling.example import Run, num_hooks
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import gradlab
from gradlab.perf.flops import CallRecorder, count_flops
from gradlab.sinks import MemorySink


def flops_of(model, *args, **kwargs):
    before = num_hooks(model)
    recorder = CallRecorder(model)
    model(*args, **kwargs)
    recorder.close()
    assert num_hooks(model) == before
    return count_flops(recorder.calls)


def test_flops_of_a_perceptron_are_those_of_its_products():
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x = torch.randn(32, 64)
    forward = 2 * 32 * (64 * 128 + 128 * 10)
    assert flops_of(model, x) == forward + forward + 2 * 32 * 128 * 10  # the input needs no gradient
    assert flops_of(model, x.requires_grad_()) == 3 * forward
    model[0].weight.requires_grad_(False)
    assert flops_of(model, x.detach()) == 3 * forward - 2 * 2 * 32 * 64 * 128
    with torch.no_grad():
        assert flops_of(model, x) == forward


def test_flops_of_attention_and_convolution_are_counted():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(3, 5, 16)
    linear = 2 * 3 * 5 * (4 * 16 * 16 + 2 * 16 * 32)
    attention = 2 * 2 * 3 * 5 * 5 * 16
    assert flops_of(layer, x.requires_grad_()) >= 3 * (linear + attention)
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    forward = 2 * 2 * 8 * 6 * 6 * 3 * 9
    assert flops_of(convolution, torch.randn(2, 3, 6, 6)) == 2 * forward


class Checkpointed(nn.Module):
    """Blocks that are kept or computed again, in one of the ways that there are."""

    def __init__(self, way=None):
        super().__init__()
        self.way = way
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(3)))
        if way == "wrapper":
            self.blocks = nn.Sequential(*map(checkpoint_wrapper, self.blocks))
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=True)

    def forward(self, x):
        if self.way == "sequential":
            return checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
        if self.way == "nested":
            return checkpoint(self.nested, x, use_reentrant=False)
        if self.way == "nested reentrant":
            return checkpoint(self.nested, x, use_reentrant=True)
        for block in self.blocks:
            if self.way in ("reentrant", "not reentrant"):
                x = checkpoint(block, x, use_reentrant=self.way == "reentrant")
            elif self.way == "selective":
                x = checkpoint(block, x, use_reentrant=False, context_fn=selective)
            elif self.way == "as in transformers":
                x = self._gradient_checkpointing_func(block.__call__, x)
            elif self.way == "own function":
                x = ComputedAgain.apply(x, block)
            else:
                x = block(x)
        return x

    def nested(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.way == "nested reentrant")
        return x


def selective():
    return create_selective_checkpoint_contexts([torch.ops.aten.addmm.default])


class ComputedAgain(torch.autograd.Function):
    """Somebody's own checkpointing, as Megatron's and DeepSpeed's."""

    @staticmethod
    def forward(ctx, x, block):
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.block(x)
        torch.autograd.backward(output, grad)
        return x.grad, None


WAYS = [
    "reentrant", "not reentrant", "nested", "nested reentrant", "sequential", "selective", "wrapper",
    "as in transformers", "own function",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # inside a checkpoint, torch's own
@pytest.mark.parametrize("way", WAYS)
def test_what_checkpointing_computes_again_does_not_count(way):
    x = torch.randn(8, 16, requires_grad=True)
    model = Checkpointed()
    with FlopCounterMode(display=False) as truth:
        model(x).sum().backward()
    assert flops_of(Checkpointed(way), x) == truth.get_total_flops() == 3 * 3 * 2 * 8 * 2 * 16 * 32


class Forces(nn.Module):
    """Returns a gradient, which its forward takes."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x):
        x = x.requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_a_gradient_that_is_part_of_the_model_counts():
    model = Forces()
    first, _, second = model.energy
    x = torch.randn(8, 16, requires_grad=True)
    with FlopCounterMode(display=False) as truth:  # whose hooks on modules do not bear such a forward
        energy = F.linear(torch.tanh(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
        torch.autograd.grad(energy.sum(), x, create_graph=True)[0].sum().backward()
    assert flops_of(model, torch.randn(8, 16)) == truth.get_total_flops()


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_modes_around_a_loop_see_what_they_see_without_gradlab():
    seen = []
    for is_watched in (False, True):
        run = Run()
        monitor = gradlab.watch(run.model, run.optimizer, sinks=[MemorySink()]) if is_watched else None
        with FlopCounterMode(display=False) as counter, Seen() as operations:
            for _ in range(12):
                run.step()
        seen.append((counter.get_total_flops(), operations.names))
        if monitor is not None:
            monitor.close()
    assert seen[0] == seen[1]


class Random(nn.Module):
    """Draws numbers, counts its calls and keeps a running mean in its forward."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.num_calls = 0
        self.seen = []

    def forward(self, x):
        self.num_calls += 1
        self.seen.append(self.num_calls)
        return gradlab.tap("named", self.norm(F.dropout(self.linear(x)) + torch.rand(8, device=x.device)))


def test_counting_touches_neither_the_model_nor_the_random_numbers():
    model = Random()
    monitor, _ = watched(model, None)
    x = torch.randn(4, 8)
    recorder = CallRecorder(model)
    model(x).sum().backward()
    recorder.close()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    grad = model.linear.weight.grad.clone()
    assert count_flops(recorder.calls) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(model.linear.weight.grad, grad)
    assert model.num_calls == 1 and model.seen == [1]
    monitor.close()
