"""A signal that vanishes, explodes or underflows is named where it begins; deep healthy nets are silent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradlab
from gradlab import Tap
from gradlab.diagnose import Diagnose, Diagnosis
from gradlab.diagnose.context import Context
from gradlab.finding import Finding

CODES = ["GL401", "GL402", "GL403", "GL404", "GL405", "GL406", "GL407", "GL501"]


def deep(depth: int, activation: Callable[[], nn.Module], width: int = 24) -> nn.Sequential:
    layers = [part for place in range(depth) for part in (nn.Linear(8 if place == 0 else width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def started(model: nn.Module, begin: Callable[[torch.Tensor], object]) -> nn.Module:
    """The model with another init of the layers before the last one."""
    for layer in [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv1d)][:-1]:
        begin(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


class Convolutions(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(1 if n == 0 else 12, 12, 3, padding=1) for n in range(depth))
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x.mean(2))


class Recurrent(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inputs, self.state, self.head = nn.Linear(1, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        nn.init.orthogonal_(self.state.weight, gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), 16)
        for one in x.repeat(1, 2).unbind(1):
            state = (self.inputs(one[:, None]) + self.state(state)).relu()
        return self.head(state)


def findings(model: nn.Module, steps: int = 24, half: bool = False) -> list[Finding]:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with gradlab.watch(
        model, optimizer, taps=[Tap("*", of="weight_grad")], strict=True, diagnose=Diagnose(select=CODES)
    ) as monitor:
        for _ in range(steps):
            x = torch.randn(32, 8)
            with torch.autocast("cpu", torch.float16, enabled=half):
                z = model(x)
            optimizer.zero_grad()
            F.cross_entropy(z.float(), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()).mul(1e-6 if half else 1).backward()
            optimizer.step()
    return list(monitor.findings)


def roots(model: nn.Module, **options) -> list[tuple[str, str]]:
    return [(one.code, one.sites[0]) for one in findings(model, **options) if one.explained_by is None]


def small(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, std=0.01)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: deep(8, nn.Sigmoid), "0.weight"),
        (lambda: started(deep(8, nn.Tanh), small), "0.weight"),
        (lambda: started(Convolutions(8), lambda weight: nn.init.normal_(weight, std=0.05)), "layers.0.weight"),
    ],
    ids=["sigmoid", "tanh", "conv"],
)
def test_a_vanishing_gradient_is_named_with_the_layer_that_gets_least(make, place: str):
    torch.manual_seed(0)
    assert roots(make()) == [("GL402", place)]


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: started(deep(5, nn.ReLU, 48), nn.init.normal_), "0.weight"),
        (lambda: started(Convolutions(6), nn.init.normal_), "layers.0.weight"),
        (lambda: Recurrent(3.0), "state.weight"),
        (lambda: started(deep(10, nn.Tanh, 48), lambda weight: nn.init.normal_(weight, std=3)), "0.weight"),
    ],
    ids=["relu", "conv", "recurrent", "saturated"],
)
def test_an_exploding_signal_is_named_with_the_layer_where_it_begins(make, place: str):
    torch.manual_seed(0)
    assert ("GL405", place) in roots(make(), steps=4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: started(deep(16, nn.ReLU), lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu")),
        lambda: deep(6, nn.Tanh),
        lambda: started(deep(6, lambda: nn.Sequential(nn.LayerNorm(24), nn.GELU())), nn.init.normal_),
        lambda: Recurrent(1.0),
        lambda: Convolutions(3),
    ],
    ids=["he", "tanh", "large weights before norms", "recurrent", "conv"],
)
def test_healthy_training_is_silent(make):
    torch.manual_seed(0)
    assert findings(make()) == []


def test_float16_gradients_that_have_lost_their_digits_are_told_and_others_are_not():
    torch.manual_seed(0)
    assert "GL406" in [one.code for one in findings(deep(2, nn.Tanh), steps=4, half=True)]
    assert findings(deep(2, nn.Tanh), steps=4) == []


@pytest.mark.parametrize("code", ["GL402", "GL405", "GL406"])
def test_nothing_is_said_without_the_signal(code: str):
    assert Diagnosis(Diagnose(select=code)).look(Context(step=100)) == []
