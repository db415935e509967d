"""What is known of an optimizer: what it steps, what is inside of it, whether it runs hooks, and its loss scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab.optimizers import (
    LossScale,
    UnknownOptimizer,
    inner_optimizer,
    optimizer_list,
    optimizers_inside,
    parameter_ids,
    parameters_of,
    runs_hooks,
    training_optimizers,
)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


class LightningOptimizer:
    """Called as Lightning's, which has the one that steps under this attribute."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


class ByLayer:
    """Steps optimizers that it keeps in a dict, some deeper down."""

    def __init__(self, *optimizers: Any) -> None:
        self.all = dict(enumerate(optimizers))

    def step(self) -> None:
        for one in self.all.values():
            one.step()


def test_what_was_given_is_a_list_without_the_wrappers_of_frameworks() -> None:
    a, b = sgd(nn.Linear(2, 2)), sgd(nn.Linear(2, 2))
    assert inner_optimizer(LightningOptimizer(LightningOptimizer(a))) is a
    for given in ([a, LightningOptimizer(b)], {"a": a, "b": LightningOptimizer(b)}, (one for one in (a, b))):
        assert optimizer_list(given) == [a, b]
    assert optimizer_list(a) == [a] == optimizer_list(LightningOptimizer(a)) and optimizer_list(None) == []


def test_optimizers_are_found_inside_of_others() -> None:
    a, b = sgd(nn.Linear(2, 2)), sgd(nn.Linear(2, 2))
    assert {id(one) for one in optimizers_inside(ByLayer(a, ByLayer(b)))} == {id(a), id(b)}
    assert optimizers_inside(a) == []


def test_a_framework_is_not_stopped_by_an_optimizer_that_trains_something_else() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    mine, strange, outer = sgd(model), sgd(other), ByLayer(sgd(model))
    assert training_optimizers(model, [strange, mine, outer]) == [mine, outer]
    assert training_optimizers(model, [strange]) is None and training_optimizers(model, None) is None


@pytest.mark.parametrize("groups", [None, 3, [], [3], [{}], [{"params": 3}], [{"params": [3, "text"]}]])
def test_param_groups_of_any_kind_are_read_as_far_as_they_can_be(groups: Any) -> None:
    optimizer = ByLayer()
    optimizer.param_groups = groups  # type: ignore[attr-defined]
    assert parameters_of(optimizer) == [] and parameters_of(ByLayer()) == []


def test_an_unknown_optimizer_steps_all_parameters() -> None:
    model = nn.Linear(2, 2)
    unknown = UnknownOptimizer("Lion", lambda: dict(model.named_parameters()))
    assert parameter_ids([unknown]) == {id(p) for p in model.parameters()} == parameter_ids([sgd(model)])


def test_a_step_of_the_instance_runs_no_hooks() -> None:
    optimizer = sgd(nn.Linear(2, 2))
    assert runs_hooks(optimizer) and not runs_hooks(ByLayer(optimizer))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # puts a step of its own in, which runs them
    assert runs_hooks(optimizer)
    optimizer.step = lambda *_: None  # type: ignore[method-assign, assignment]
    assert not runs_hooks(optimizer)


class Asks(torch.optim.SGD):
    """Notes at each step which loss scale there is."""

    scale: LossScale
    found: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        self.found = self.scale.now()
        return super().step(closure)


def test_the_scaler_that_calls_an_optimizer_is_found_by_itself() -> None:
    model = nn.Linear(2, 2)
    optimizer = Asks(model.parameters(), lr=0.1)
    optimizer.scale = LossScale()
    optimizer.step()
    assert optimizer.found is None
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    assert optimizer.found is not None and optimizer.found.item() == 8.0
    assert LossScale(torch.amp.GradScaler("cpu", enabled=False)).now() is None
