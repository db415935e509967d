"""Watching changes nothing: losses, weights, random state, buffers, modes and what a model pickles to."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import nn

import gradlab
from gradlab import Tap
from gradlab.hooks.call_hooks import CALL_ATTRIBUTE

EVERYTHING = [
    Tap("*", of=["output", "output_grad"], stats=["norm", "std", "zeros"]),
    Tap("*", of=["weight", "weight_grad", "update"]),
    Tap("*", of="weight_grad", stage="clipped"),
]


def train(case: zoo.Case, watched: bool, steps: int = 4) -> tuple[list[float], dict[str, Any], torch.Tensor]:
    """Losses, final state and random state of a short training, watched or not."""
    torch.manual_seed(3)
    model = case.make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    monitor = gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True) if watched else None
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for micro in range(2):
            loss = case.loss(model(case.batch(10 * step + micro)))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    if monitor is not None:
        monitor.close()
    return losses, copy.deepcopy(model.state_dict()), torch.get_rng_state()


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_losses_weights_and_random_state_are_bit_identical(name: str) -> None:
    bare, watched = (train(zoo.ZOO[name], on) for on in (False, True))
    np.testing.assert_array_equal(bare[0], watched[0])
    torch.testing.assert_close(watched[1], bare[1], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(bare[2], watched[2])


def hooks_of(model: nn.Module) -> int:
    """How many hooks of any kind, call hooks too, there are on the modules of a model."""
    return sum(CALL_ATTRIBUTE in vars(module) for module in model.modules()) + sum(
        len(registry)
        for module in model.modules()
        for registry in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._forward_hooks_always_called,
            module._forward_pre_hooks_with_kwargs,
            module._backward_hooks,
        )
    )


def watched_model() -> tuple[nn.Module, gradlab.Monitor]:
    """A model in the middle of being watched, one step taken."""
    case = zoo.ZOO["DropoutAndNorm"]
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True)
    case.loss(model(case.batch())).backward()
    optimizer.step()
    return model, monitor


def copy_by_torch_save(model: nn.Module) -> nn.Module:
    """Save and load the whole model."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy_by_torch_save])
def test_a_copy_of_a_watched_model_is_not_watched(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model, monitor = watched_model()
    frames = len(monitor.history("weight.norm", "net.0.weight")[0])
    twin = duplicate(model)
    loss = twin(zoo.ZOO["DropoutAndNorm"].batch()).sum()
    loss.backward()
    assert not monitor._training_step.engine.recorder.passes
    assert len(monitor.history("weight.norm", "net.0.weight")[0]) == frames
    assert twin.state_dict().keys() == model.state_dict().keys()
    monitor.close()


def test_after_close_nothing_is_left() -> None:
    case = zoo.ZOO["DropoutAndNorm"]
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradlab.watch(model, optimizer, taps=[*EVERYTHING, Tap("net.0", of="output_grad", keep=True)])
    case.loss(model(case.batch())).backward()
    activation = weakref.ref(monitor.tensor("net.0"))
    optimizer.step()
    monitor.close()
    assert hooks_of(model) == 0
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    gone = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert gone() is None and activation() is None


def test_the_graph_is_freed_as_without_watching() -> None:
    case = zoo.ZOO["Functional"]
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=EVERYTHING):
        gc.disable()
        try:
            activations = []
            model.a.register_forward_hook(lambda module, args, out: activations.append(weakref.ref(out)))
            case.loss(model(case.batch())).backward()
            assert activations[0]() is None
        finally:
            gc.enable()


def test_a_step_on_which_nothing_is_due_has_no_hook() -> None:
    model = zoo.ZOO["Functional"].make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taps = [Tap("*", of=["output", "weight_grad"], every=3)]
    with gradlab.watch(model, optimizer, taps=taps, diagnose=False):
        seen = []
        for _ in range(4):
            seen.append(hooks_of(model) > 0)
            model(zoo.ZOO["Functional"].batch()).sum().backward()
            optimizer.step()
    assert seen == [True, False, False, True]
