"""Facts of backwards in real training: said once, with their place, and nothing of the graph or the model is held."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradlab
from gradlab import Tap
from gradlab.facts import collection

BACKWARD = torch.autograd.backward


def classifier(*last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3), *last)


def train(model: nn.Module, loss: Callable[..., torch.Tensor] = F.cross_entropy, steps: int = 4, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad")], strict=True, **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    return monitor.findings


def test_a_softmax_before_cross_entropy_is_said_once_with_its_module():
    (finding,) = train(classifier(nn.Softmax(1)))
    assert (finding.kind, finding.site, finding.step, finding.severity) == ("double_softmax", "3", 0, "warning")
    assert finding.message == (
        "the outputs go through a softmax (module '3'), and then through the softmax that cross_entropy (or "
        "log_softmax) applies itself: its gradients are a fraction of what they should be."
    )
    assert finding.advice == "Give the loss the outputs from before the softmax."


def test_a_functional_softmax_is_placed_at_the_layer_before_it():
    (finding,) = train(classifier(), lambda z, y: F.cross_entropy(z.softmax(1), y))
    assert finding.site == "2"
    assert "through a softmax (after '2')," in finding.message


def test_healthy_training_is_silent():
    assert train(classifier(), steps=30) == []


def test_the_loss_of_another_model_is_not_this_ones():
    model, other = classifier(), classifier(nn.Softmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad")], strict=True) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(other(x), y).backward()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert monitor.findings == []


def test_the_list_form_and_a_grad_scaler_are_seen():
    for backward in (lambda loss: torch.autograd.backward([loss]), lambda loss: (1024 * loss).backward()):
        model = classifier(nn.Softmax(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad")], strict=True) as monitor:
            backward(F.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,))))
            optimizer.step()
        assert [one.kind for one in monitor.findings] == ["double_softmax"]


def test_afterwards_torch_has_its_own_function_again():
    train(classifier())
    assert torch.autograd.backward is BACKWARD


def test_a_monitor_that_is_never_closed_keeps_nothing_alive():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad")])
    loss = F.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,)))
    node = weakref.ref(loss.grad_fn.metadata.setdefault("here", type("Mark", (), {})()))
    loss.backward()
    optimizer.step()
    alive = weakref.ref(model)
    monitor.close()
    del loss, model, optimizer, monitor
    gc.collect()
    assert node() is None and alive() is None


def test_what_fails_here_is_switched_off_alone(monkeypatch):
    def fail(*_):
        raise ArithmeticError("no graph today")

    monkeypatch.setattr(collection, "read_graph", fail)
    model = classifier(nn.Softmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = "the facts for the diagnosis are gathered no more: ArithmeticError: no graph today"
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad")]) as monitor:
        with pytest.warns(gradlab.GradlabWarning, match=expected):
            F.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,))).backward()
        optimizer.step()
        assert monitor.latest()["weight_grad.norm"]["0.weight"] > 0
