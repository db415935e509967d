"""Optimizers that step inside the backward: the same numbers as with one optimizer after it, and the same training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab import Tap
from gradlab.sinks import MemorySink

TAPS = [Tap("*", of=["weight_grad", "weight", "update"]), Tap("*", of=["output", "output_grad"])]
STEPS = 3


def model() -> nn.Sequential:
    """The same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2), nn.Linear(2, 2)).double()


def loss(network: nn.Module, step: int) -> Tensor:
    """The loss of a step."""
    x = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return network(x).square().mean()


def after_backward(network: nn.Module, watched: bool) -> list[dict[str, dict[str, float]]]:
    """One optimizer, after each backward."""
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    monitor = gradlab.watch(network, optimizer, taps=TAPS, sinks=[MemorySink()], strict=True) if watched else None
    for step in range(STEPS):
        loss(network, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return frames(monitor)


def in_backward(
    network: nn.Module, watched: bool, *, keeps: bool = False, finds: bool = False
) -> list[dict[str, dict[str, float]]]:
    """An optimizer a parameter, inside each backward."""
    optimizers = {p: torch.optim.Adam([p], 0.1) for p in network.parameters()}

    def step_and_forget(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad(set_to_none=not keeps)

    for p in network.parameters():
        p.register_post_accumulate_grad_hook(step_and_forget)
    given = None if finds else list(optimizers.values())
    monitor = gradlab.watch(network, given, taps=TAPS, sinks=[MemorySink()], strict=True) if watched else None
    for step in range(STEPS):
        loss(network, step).backward()
    return frames(monitor)


def frames(monitor: gradlab.Monitor | None) -> list[dict[str, dict[str, float]]]:
    """All that was logged."""
    if monitor is None:
        return []
    monitor.close()
    (sink,) = monitor.sinks
    return [{metric: dict(series.items()) for metric, series in frame.items()} for frame in sink.frames]


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("finds", [False, True])
def test_the_numbers_are_those_of_one_optimizer_after_the_backward(keeps: bool, finds: bool) -> None:
    expected = after_backward(model(), watched=True)
    found = in_backward(model(), watched=True, keeps=keeps, finds=finds)
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for metric in other:
            assert one[metric] == pytest.approx(other[metric], rel=1e-5), metric


def test_training_is_the_same_bit_for_bit() -> None:
    bare, watched = model(), model()
    in_backward(bare, watched=False)
    in_backward(watched, watched=True)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))


def test_a_parameter_without_a_gradient_does_not_hold_up_the_step() -> None:
    network = model()
    network.register_parameter("unused", nn.Parameter(torch.zeros(3, dtype=torch.float64)))
    assert len(in_backward(network, watched=True)) == STEPS


def test_an_optimizer_after_the_backward_ends_the_step_that_others_began_inside_it() -> None:
    network = model()
    early, late = network[0].weight, [p for p in network.parameters() if p is not network[0].weight]
    inside, after = torch.optim.SGD([early], 0.1), torch.optim.SGD(late, 0.1)

    def step_and_forget(p: Tensor) -> None:
        inside.step()
        inside.zero_grad()

    early.register_post_accumulate_grad_hook(step_and_forget)
    with gradlab.watch(network, [inside, after], taps=TAPS, strict=True) as monitor:
        for step in range(STEPS):
            loss(network, step).backward()
            truth = {name: p.grad.norm().item() for name, p in network.named_parameters() if p.grad is not None}
            after.step()
            after.zero_grad()
            logged = dict(monitor.latest()["weight_grad.norm"].items())
            assert {name: logged[name] for name in truth} == pytest.approx(truth, rel=1e-6)
            assert logged["0.weight"] > 0
        assert monitor.step == STEPS
