"""The origin of non-finite numbers: the op, node, module and line by name, and what is no alarm."""

from __future__ import annotations

import copy
import inspect
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gradlab
from gradlab.errors import TapError
from gradlab.nonfinite.replay import RandomState, replay_origin
from gradlab.nonfinite.search import Origin, Search, searching


class Net(nn.Module):
    """A linear layer, a function of its output, and a head."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(4, 4), Act(function), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.fc(x)))


class Act(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def searched(model: nn.Module, x: Tensor | None = None) -> Search:
    """One forward and backward of the mean square output."""
    x = torch.randn(3, 4) if x is None else x
    with searching(model) as search:
        model(x).square().mean().backward()
    return search


def origin_of(model: nn.Module, x: Tensor | None = None) -> Origin:
    """The origin of one searched step, which must have one."""
    origin = searched(model, x).origin()
    assert origin is not None
    return origin


def line_of(function: Callable[..., Any], text: str) -> str:
    """`file:line` of the line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next(i for i, line in enumerate(lines) if text in line)}"


def rooted(h: Tensor) -> Tensor:
    zero = h * 0
    return zero.sqrt()


def test_backward_names_the_op_that_anomaly_mode_misses() -> None:
    origin = origin_of(Net(rooted))
    assert (origin.phase, origin.kind, origin.op, origin.node) == (
        "backward",
        "inf",
        "aten.div.Tensor",
        "SqrtBackward0",
    )
    assert origin.module == "act"
    assert origin.place == line_of(rooted, ".sqrt()")
    gradient, root = origin.inputs
    assert gradient.nonfinite == 0 and gradient.shape == (3, 4)
    assert (root.min, root.max, root.zeros, root.dtype) == (0.0, 0.0, 12, "float32")
    assert origin.output is not None and origin.output.nonfinite == 12
    sentence = origin.sentence()
    assert sentence.startswith("aten.div.Tensor of SqrtBackward0 in the backward makes inf in 12 of 12 values out of ")
    assert sentence.endswith(f"in module act, at {origin.place}.")


@pytest.mark.parametrize(
    ("function", "op", "kind"),
    [
        (lambda h: torch.log(h * 0), "aten.log.default", "inf"),
        (lambda h: (h * 0) / (h * 0), "aten.div.Tensor", "nan"),
        (lambda h: 1 / (h * 0), "aten.reciprocal.default", "inf"),
        (lambda h: (h - 100).sqrt(), "aten.sqrt.default", "nan"),
        (lambda h: (h.half() + 20).exp().float(), "aten.exp.default", "inf"),
        (lambda h: (h.bfloat16() + 200).exp().float(), "aten.exp.default", "inf"),
        (lambda h: (h + 1e5).half().float(), "aten._to_copy.default", "inf"),
    ],
)
def test_forward_names_the_producer_not_those_that_pass_it_on(
    function: Callable[[Tensor], Tensor], op: str, kind: str
) -> None:
    origin = origin_of(Net(function))
    assert (origin.phase, origin.op, origin.kind, origin.module, origin.node) == ("forward", op, kind, "act", "")
    assert origin.place.startswith(f"{__file__}:")
    assert all(stats.nonfinite == 0 for stats in origin.inputs)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_bad_data_is_the_origin_itself(value: float) -> None:
    x = torch.randn(3, 4)
    x[1, 2] = value
    origin = origin_of(Net(torch.tanh), x)
    assert (origin.source, origin.op, origin.module) == ("input", "", "fc")
    (held,) = origin.inputs
    assert held.nonfinite == 1 and held.kind == origin.kind
    assert origin.sentence().startswith("input (input float32[3, 4]") is False
    assert origin.sentence().startswith("input (float32[3, 4]")


def test_a_bad_weight_is_the_origin_itself() -> None:
    model = Net(torch.tanh)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    origin = origin_of(model)
    assert (origin.source, origin.kind, origin.module) == ("head.weight", "nan", "head")


def test_a_bad_weight_that_no_op_reads_is_found() -> None:
    model = Net(torch.tanh)
    model.spare = nn.Parameter(torch.full((2,), float("nan")))
    assert origin_of(model).source == "spare"


def test_a_bad_label_is_a_tensor_from_outside() -> None:
    model, x, y = Net(torch.tanh), torch.randn(3, 4), torch.full((3, 2), float("nan"))
    with searching(model) as search:
        F.mse_loss(model(x), y).backward()
    origin = search.origin()
    assert origin is not None
    assert origin.source == "a tensor from outside the step"
    assert origin.place == line_of(test_a_bad_label_is_a_tensor_from_outside, "F.mse_loss")


def test_a_finite_step_has_neither_origin_nor_transients() -> None:
    search = searched(Net(torch.tanh))
    assert search.origin() is None
    assert search.transients() == []


def causal(scores: Tensor) -> Tensor:
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(mask, float("-inf")).softmax(-1)


def causal_by_addition(scores: Tensor) -> Tensor:
    return (scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)).softmax(-1)


@pytest.mark.parametrize("attend", [causal, causal_by_addition])
def test_an_attention_mask_is_no_alarm(attend: Callable[[Tensor], Tensor]) -> None:
    search = searched(Net(lambda h: attend(h @ h.T) @ h))
    assert search.origin() is None
    assert all(transient.deliberate for transient in search.transients())
    assert search.transients()


def test_a_mask_from_outside_is_no_alarm() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    with searching(model) as search:
        model(torch.randn(2, 5, 8), src_mask=mask).square().mean().backward()
    assert search.origin() is None
    assert all(transient.deliberate for transient in search.transients())


def test_a_row_that_is_masked_whole_is_blamed_on_the_softmax() -> None:
    origin = origin_of(Net(lambda h: h.masked_fill(torch.ones_like(h, dtype=torch.bool), float("-inf")).softmax(-1)))
    assert (origin.op, origin.kind) == ("aten._softmax.default", "nan")


def test_a_mask_does_not_hide_the_true_origin() -> None:
    def both(h: Tensor) -> Tensor:
        return causal(h @ h.T) @ h + torch.log(h * 0)

    origin = origin_of(Net(both))
    assert origin.op == "aten.log.default"


def test_an_infinity_that_relu_swallows_is_transient() -> None:
    search = searched(Net(lambda h: torch.relu(torch.log(h.detach() * 0))))
    assert search.origin() is None
    (transient,) = search.transients()
    assert (transient.op, transient.module, transient.deliberate) == ("aten.log.default", "act", False)


def test_the_where_trap_is_found_in_the_backward() -> None:
    """The forward selects the finite branch; 0 * inf in the backward of the other spoils the gradient."""

    def trapped(h: Tensor) -> Tensor:
        h = h * 0
        return torch.where(h > 0, h.sqrt(), torch.zeros_like(h))

    search = searched(Net(trapped))
    origin = search.origin()
    assert origin is not None
    assert (origin.phase, origin.op, origin.node, origin.kind) == (
        "backward",
        "aten.div.Tensor",
        "SqrtBackward0",
        "nan",
    )


class Explosive(torch.autograd.Function):
    """The identity, with a backward that divides by zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / torch.zeros(())


def test_a_custom_function_is_named_with_the_line_of_its_backward() -> None:
    origin = origin_of(Net(Explosive.apply))
    assert (origin.phase, origin.op, origin.node) == ("backward", "aten.div.Tensor", "ExplosiveBackward")
    assert (origin.module, origin.place) == ("act", line_of(Explosive.backward, "g / torch"))


class Twice(nn.Module):
    """One module is called twice; the second call overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Act(lambda h: (h * 30).exp())

    def forward(self, x: Tensor) -> Tensor:
        self.block(x.square() * 0 + 1)
        return self.block(x.square() + 10)


def test_the_second_call_of_a_module_has_its_number() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    origin = origin_of(Twice(), x)
    assert (origin.op, origin.module) == ("aten.exp.default", "block#2")


def test_an_op_in_place_is_named() -> None:
    def in_place(h: Tensor) -> Tensor:
        h = h * 0
        h[0].log_()
        return h + 1

    origin = origin_of(Net(in_place))
    assert (origin.op, origin.kind) == ("aten.log_.default", "inf")
    assert origin.inputs[0].zeros == 4 and origin.inputs[0].nonfinite == 0


def test_memory_that_was_overwritten_is_forgotten() -> None:
    def repaired(h: Tensor) -> Tensor:
        scratch = torch.log(h.detach() * 0)
        scratch.zero_()
        return torch.log(h * 0) + scratch

    search = searched(Net(repaired))
    origin = search.origin()
    assert origin is not None
    assert origin.place == line_of(repaired, "+ scratch")
    assert [t.place for t in search.transients()] == [line_of(repaired, "scratch = ")]


def test_memory_that_was_never_written_is_the_origin() -> None:
    torch._C._set_deterministic_algorithms(True)  # Fresh memory is then filled with NaN.
    try:
        origin = origin_of(Net(lambda h: h + torch.empty(4)))
        assert origin.op == "aten.empty.memory_format"
        assert origin.sentence().startswith(
            "memory from aten.empty.memory_format is used while nothing has been written"
        )
        assert searched(Net(lambda h: h + torch.empty(4).copy_(h[0]))).origin() is None
    finally:
        torch._C._set_deterministic_algorithms(False)


class Checkpointed(nn.Module):
    """The bad op stands in a checkpointed block."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.fc, self.block, self.use_reentrant = nn.Linear(4, 4), Net(rooted), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.fc(x), use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_block_keeps_its_names(use_reentrant: bool) -> None:
    origin = origin_of(Checkpointed(use_reentrant))
    assert (origin.phase, origin.op, origin.node) == ("backward", "aten.div.Tensor", "SqrtBackward0")
    assert (origin.module, origin.place) == ("block.act", line_of(rooted, ".sqrt()"))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_forward_is_named_as_forward(use_reentrant: bool) -> None:
    model = Checkpointed(use_reentrant)
    model.block.act = Act(lambda h: torch.log(h * 0))
    origin = origin_of(model)
    assert (origin.phase, origin.op, origin.module) == ("forward", "aten.log.default", "block.act")


def test_a_saved_output_leads_back_to_the_forward() -> None:
    """exp overflows where the loss does not see it; its backward multiplies by the saved infinity."""

    def hidden(h: Tensor) -> Tensor:
        return 1 / (1 + (h + 200).exp())

    origin = origin_of(Net(hidden))
    assert (origin.phase, origin.op) == ("forward", "aten.exp.default")


def test_a_sparse_gradient_is_read() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    with searching(model) as search:
        (model(torch.tensor([1, 2])) * 0).sqrt().sum().backward()
    origin = search.origin()
    assert origin is not None and origin.node == "SqrtBackward0"


def test_ops_inside_a_tensor_subclass_are_seen() -> None:
    model = Net(rooted)
    x = TwoTensor(torch.randn(3, 4), torch.randn(3, 4))
    with searching(model) as search:
        model(x).sum().backward()
    origin = search.origin()
    assert origin is not None and (origin.op, origin.node) == ("aten.div.Tensor", "SqrtBackward0")


def test_an_optimizer_that_spoils_the_weights_is_named() -> None:
    model = Net(torch.tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38, foreach=False)
    with searching(model) as search:
        model(torch.randn(3, 4)).square().sum().mul(1e3).backward()
        optimizer.step()
        optimizer.zero_grad()
    origin = search.origin()
    assert origin is not None
    assert (origin.phase, origin.op) == ("update", "aten.add_.Tensor")


def test_a_result_can_be_given_by_hand() -> None:
    model = Net(lambda h: torch.log(h.detach() * 0))
    with searching(model) as search, torch.no_grad():
        search.watch(model(torch.randn(3, 4)))
    origin = search.origin()
    assert origin is not None and origin.op == "aten.log.default"


def test_asking_too_early_is_an_error() -> None:
    with searching(nn.Linear(2, 2)) as search, pytest.raises(TapError, match="after the `with searching"):
        search.origin()


def training(case: zoo.Case, *, watched: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and final state of three steps, searched or not."""
    torch.manual_seed(0)
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        if watched:
            with searching(model) as search:
                loss = case.loss(model(case.batch(step)))
                loss.backward()
            assert search.origin() is None
        else:
            loss = case.loss(model(case.batch(step)))
            loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses, [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_a_hunted_step_trains_the_same_bit_for_bit(name: str) -> None:
    bare, watched = (training(zoo.ZOO[name], watched=flag) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(bare[0] + bare[1], watched[0] + watched[1], strict=True))


def test_nothing_is_left_afterwards_even_after_an_exception() -> None:
    def broken(h: Tensor) -> Tensor:
        raise ValueError("from the model")

    model = Net(broken)
    with pytest.raises(ValueError, match="from the model"), searching(model):
        model(torch.randn(3, 4))
    for m in model.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks
        assert not m._forward_hooks_always_called and not m._forward_pre_hooks_with_kwargs
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_copy_made_in_the_hunt_has_no_live_hooks() -> None:
    model = Net(torch.tanh)
    with searching(model) as search:
        twin = copy.deepcopy(model)
        twin(torch.full((3, 4), float("inf"))).sum()
        model(torch.randn(3, 4)).sum().backward()
    assert search.origin() is None
    assert [t.module for t in search.transients()] == [""]


def test_activations_are_freed_as_without_a_hunt() -> None:
    model, seen = Net(torch.tanh), []
    with searching(model):
        h = model.act(model.fc(torch.randn(3, 4)))
        seen.append(weakref.ref(h))
        storage = StorageWeakRef(h.untyped_storage())
        h.sum().backward()
        del h
        assert seen[0]() is None and storage.expired()


class _HostReads(TorchDispatchMode):
    """Counts ops that bring a number to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_by_the_host_during_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(rooted)
    lists: list[int] = []
    to_list = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda t: lists.append(1) or to_list(t))
    with _HostReads() as reads:
        with searching(model) as search:
            model(torch.randn(3, 4)).sum().backward()
            assert not lists
        assert search.origin() is not None
    assert reads.count == 0 and len(lists) == 1


class Noisy(nn.Module):
    """Dropout and running statistics before an overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(self.drop(self.norm(x))) * 0).sqrt()


def test_a_replay_leaves_no_trace() -> None:
    model, x = Noisy(), torch.randn(8, 4)
    model(x).sum().backward()
    called: list[int] = []
    model.fc.weight.register_post_accumulate_grad_hook(lambda p: called.append(1))
    grads = {name: p.grad for name, p in model.named_parameters()}
    copies = copy.deepcopy(grads)
    buffers, state = dict(model.named_buffers()), copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    origin = replay_origin(model, lambda: model(x).sum().backward())
    assert origin is not None and origin.node == "SqrtBackward0"
    for name, p in model.named_parameters():
        assert p.grad is grads[name]
        torch.testing.assert_close(p.grad, copies[name], rtol=0, atol=0, equal_nan=True)
    assert all(b is buffers[name] for name, b in model.named_buffers())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng[0]) and random.getstate() == rng[1]
    assert np.random.get_state()[1].tolist() == rng[2]
    assert not called
    model(x).sum().backward()
    assert called


def test_a_replay_draws_the_random_numbers_of_the_step() -> None:
    model, x, drawn = Noisy(), torch.randn(8, 4), []
    start = RandomState.now(model)

    def step() -> None:
        drawn.append(torch.rand(3))
        model(x).sum().backward()

    step()
    replay_origin(model, step, random_state=start)
    assert torch.equal(*drawn)


def test_a_replay_is_not_recorded_by_a_monitor() -> None:
    model, x = Net(torch.tanh), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=[gradlab.Tap("*", of=["output_grad", "weight_grad"])]) as monitor:
        model(x).sum().backward()
        expected = model.fc.weight.grad.norm().item()
        assert replay_origin(model, lambda: model(x * 100).sum().backward()) is None
        optimizer.step()
        assert monitor.latest()["weight_grad.norm"]["fc.weight"] == pytest.approx(expected)
