"""Outputs that do not depend on the input are named, and a loss that is no better than frequencies is a hint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradlab
from gradlab import Tap
from gradlab.diagnose import Diagnose, Diagnosis
from gradlab.diagnose.context import Context, LossSeries, TargetFacts
from gradlab.finding import Finding

COUNTS = (60, 30, 10)
ENTROPY = -sum(share * math.log(share) for share in (0.6, 0.3, 0.1))


def context(values: np.ndarray, *, spread: float = 0.5, root: str = "NllLoss", step: int = 150) -> Context:
    """Losses of 150 steps, and targets of ten looks whose labels occur as `COUNTS` says."""
    made = Context(step=step)
    target = TargetFacts(loss="NllLoss", numel=100, mean=0.5, std=0.67, prediction_spread=spread, label_counts=COUNTS)
    made.targets = [(target,)] * 10
    made.losses = [LossSeries(root=root, steps=np.arange(len(values)), values=values)]
    return made


def found(made: Context, select: str) -> list[Finding]:
    return Diagnosis(Diagnose(select=select)).look(made)


def noisy(level: float) -> np.ndarray:
    return level * (1 + 0.02 * np.random.default_rng(0).standard_normal(150))


def test_a_loss_that_equals_the_frequencies_is_a_hint():
    (finding,) = found(context(noisy(ENTROPY)), "GL502")
    assert finding.severity == "info" and "entropy of the labels" in finding.message


@pytest.mark.parametrize("level", [0.9, 1.1])
def test_a_loss_beside_the_frequencies_is_none(level: float):
    assert found(context(noisy(level * ENTROPY)), "GL502") == []


def test_a_loss_with_other_terms_is_not_compared():
    assert found(context(noisy(ENTROPY), root="Add"), "GL502") == []


def test_predictions_that_are_the_same_for_a_whole_batch_are_told_once_training_has_begun():
    (finding,) = found(context(noisy(1.0), spread=1e-7), "GL501")
    assert "no longer depends on the input" in finding.message
    assert found(context(noisy(1.0), spread=1e-7, step=10), "GL501") == []
    assert found(context(noisy(1.0), spread=1e-2), "GL501") == []


@pytest.mark.parametrize("code", ["GL501", "GL502"])
def test_nothing_is_said_without_the_signal(code: str):
    assert found(Context(step=150), code) == []


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(2, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.view(-1, 3, 2))[0][:, -1]).softmax(1)


def findings(model: nn.Module, loss) -> list[Finding]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(
        model, optimizer, taps=[Tap("*", of="weight_grad")], strict=True, diagnose=Diagnose(select=["GL4", "GL50"])
    ) as monitor:
        for _ in range(5):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            loss(model(x), (x[:, 0] > 0).float()).backward()
            optimizer.step()
    return list(monitor.findings)


def bce(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy(z[:, 0], y)


@pytest.mark.parametrize(
    ("model", "loss", "sites"),
    [
        (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Softmax(dim=-1)), bce, ("3",)),
        (Functional(), bce, ()),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), lambda z, y: F.cross_entropy(z, 0 * y.long()), ()),
    ],
    ids=["module", "function", "cross entropy"],
)
def test_a_softmax_over_one_number_is_the_only_root(model: nn.Module, loss, sites: tuple[str, ...]):
    (root,) = [one for one in findings(model, loss) if one.explained_by is None]
    assert (root.code, root.sites, root.first_step) == ("GL501", sites, 0)


def test_a_sigmoid_and_a_softmax_over_two_are_healthy():
    assert findings(nn.Sequential(nn.Linear(6, 1), nn.Sigmoid()), bce) == []
    assert findings(nn.Sequential(nn.Linear(6, 2), nn.Softmax(1)), bce) == []
