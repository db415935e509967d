"""Gathering facts changes nothing: training is bit-identical, hooks of others are not called, nothing is held."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradlab
from gradlab.facts.collection import is_look

STEPS = 24


class Checkpointed(nn.Module):
    """Two blocks, whose activations are computed again in the backward."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.2), nn.ReLU())
        self.last = nn.Linear(16, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.body, self.first(x), use_reentrant=self.reentrant))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.GRUCell(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for part in x.view(len(x), 3, 2).unbind(1):
            h = self.cell(part, h)
        return self.last(h)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "checkpointed": lambda: Checkpointed(reentrant=False),
    "reentrant": lambda: Checkpointed(reentrant=True),
    "recurrent": Recurrent,
    "double": lambda: plain().double(),
    "half frozen": lambda: frozen(plain()),
}


def frozen(model: nn.Module) -> nn.Module:
    for p in list(model.parameters())[:2]:
        p.requires_grad_(False)
    return model


def trained(model: nn.Module, *, diagnose: bool, clip: bool = False) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Losses, weights and the state of the generator after some steps."""
    torch.manual_seed(1)
    trained_ones = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained_ones, lr=1e-2)
    dtype = next(model.parameters()).dtype
    losses = []
    with gradlab.watch(model, optimizer, diagnose=diagnose, strict=True):
        for _ in range(STEPS):
            x, y = torch.randn(8, 6, dtype=dtype), torch.randint(0, 3, (8,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(trained_ones, 0.1)
            optimizer.step()
            losses.append(loss.detach())
    return losses, [p.detach().clone() for p in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip", [False, True])
def test_training_is_bit_identical_with_the_diagnosis_on(name: str, clip: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    off = trained(copy.deepcopy(model), diagnose=False, clip=clip)
    on = trained(copy.deepcopy(model), diagnose=True, clip=clip)
    assert all(torch.equal(a, b) for a, b in zip(off[0], on[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(off[1], on[1], strict=True))
    assert torch.equal(off[2], on[2])


def test_hooks_for_saved_tensors_are_called_no_more_often() -> None:
    calls: list[int] = []

    def count(*, diagnose: bool) -> int:
        torch.manual_seed(0)
        model = plain()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        calls.clear()
        with gradlab.watch(model, optimizer, diagnose=diagnose, strict=True):
            for _ in range(4):
                with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: calls.append(1) or t):
                    loss = F.cross_entropy(model(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return len(calls)

    assert count(diagnose=True) == count(diagnose=False) > 0


def test_nothing_of_a_step_is_held_once_it_is_over() -> None:
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, strict=True):
        alive: list[weakref.ref] = []
        for _ in range(3):
            hidden = model[0](torch.randn(8, 6))
            loss = F.cross_entropy(model[1:](hidden), torch.randint(0, 3, (8,)))
            mark = loss.grad_fn.metadata.setdefault("here", Mark())
            alive += [weakref.ref(hidden), weakref.ref(loss), weakref.ref(mark)]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del hidden, loss, mark
        gc.collect()
        assert [ref() for ref in alive] == [None] * 9


class Mark:
    """Lives as long as a graph does."""


def test_a_graph_that_is_used_twice_is_read_and_left_as_it_is() -> None:
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, strict=True):
        loss = F.cross_entropy(model(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
        loss.backward(retain_graph=True)
        first = [p.grad.clone() for p in model.parameters()]
        loss.backward()
        assert all(torch.equal(2 * a, p.grad) for a, p in zip(first, model.parameters(), strict=True))
        optimizer.step()


def looks(until: int) -> Iterator[int]:
    return (step for step in range(until) if is_look(step))


def test_looks_become_rarer_as_training_goes_on() -> None:
    assert list(looks(61)) == [0, 1, 2, 5, 10, 20, 30, 40, 50, 60]
    for low in (200, 400, 800, 1600, 51200):
        assert 9 <= sum(map(is_look, range(low, 2 * low))) <= 11
