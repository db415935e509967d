"""Data that is not scaled, targets far from zero, leaks, ids out of use and NaN in data are named; twins are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradlab
from gradlab import Tap
from gradlab.diagnose import Diagnose, Diagnosis
from gradlab.diagnose.context import Context, EmbeddingFacts, NonfiniteFacts, TargetFacts
from gradlab.finding import Finding

DATA = ["GL510", "GL511", "GL512", "GL513", "GL701", "GL702"]
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def looked(*contexts: Context, select: str) -> list[Finding]:
    diagnosis = Diagnosis(Diagnose(select=[select]))
    for one in contexts:
        diagnosis.look(one)
    return diagnosis.findings


def given(**numbers: float) -> list[Context]:
    """Three looks at what two layers are given: the first gets data."""
    made = Context(step=2)
    usual = {"rms": 1.0, "columns": 1.0, "is_data": 1.0, "is_normalised": 0.0, "nonfinite": 0.0}
    for step in range(3):
        table = {
            name: np.array([numbers.get(name, value), 0.0 if name == "is_data" else value])
            for name, value in usual.items()
        }
        made.inputs.add(step, ("first.weight", "second.weight"), table)
        made.readings.add(step, ("first.weight",), {"weight.norm": np.ones(1)})
    return [made] * 3


def test_data_that_is_too_large_is_named_with_its_layer():
    (finding,) = looked(*given(rms=136.0), select="GL510")
    assert finding.sites == ("first.weight",) and finding.severity == "warning"
    assert "a root mean square of 136" in finding.message
    assert looked(*given(columns=2e6), select="GL510")[0].evidence["columns"] == 2e6


@pytest.mark.parametrize(
    "numbers",
    [{}, {"rms": 3.0}, {"columns": 900.0}, {"rms": 136.0, "is_normalised": 1.0}, {"rms": 136.0, "is_data": 0.0}],
    ids=["usual", "a little large", "pixels", "batch norm next", "a hidden layer"],
)
def test_other_inputs_are_no_finding(numbers: Mapping[str, float]):
    assert looked(*given(**numbers), select="GL510") == []


def test_a_rule_on_inputs_is_silent_without_them():
    assert looked(Context(step=5), select="GL510") == looked(Context(step=5), select="GL701") == []


def target(mean: float, std: float, **more: object) -> TargetFacts:
    return TargetFacts(loss="MseLoss", numel=64, mean=mean, std=std, **({"prediction_mean": 0.0} | more))  # type: ignore[arg-type]


def test_a_target_far_from_zero_is_told():
    (finding,) = looked(Context(step=3, targets=[[target(1013.0, 8.0)]]), select="GL511")
    assert "a mean of 1013 and a standard deviation of 8" in finding.message


@pytest.mark.parametrize(
    "one",
    [
        target(1.0, 2.0),
        target(1.0, 0.0),
        target(1.0, 0.01),
        target(250.0, 12.0, prediction_mean=249.0),
        target(1013.0, 8.0, step=60),
    ],
    ids=["usual", "all the same", "small", "the model adds the mean", "later"],
)
def test_other_targets_are_not(one: TargetFacts):
    assert looked(Context(step=80, targets=[[one]]), select="GL511") == []


def test_a_leak_is_a_note_where_every_batch_shows_it():
    leaky, usual = [target(0.0, 1.0, leak=0.99999)], [target(0.0, 1.0, leak=0.9)]
    (finding,) = looked(Context(step=10, targets=[leaky] * 3), select="GL512")
    assert finding.severity == "info"
    assert looked(Context(step=10, targets=[leaky, usual, leaky]), select="GL512") == []
    assert looked(Context(step=10, targets=[leaky]), select="GL512") == []


@pytest.mark.parametrize(("rows", "distinct", "is_told"), [(200, 2, True), (200, 150, False), (4, 1, False)])
def test_ids_out_of_use_are_a_note(rows: int, distinct: int, is_told: bool):
    one = EmbeddingFacts(name="items.weight", rows=rows, num_ids=512, distinct=distinct)
    found = looked(*[Context(step=20 + look, ids=[one]) for look in range(5)], select="GL513")
    assert [finding.sites for finding in found] == [("items.weight",)] * is_told


def test_bad_data_is_told_from_bad_weights():
    good = Context(step=3, nonfinite=NonfiniteFacts(step=3, inputs=("a.weight",), num_weights=2))
    (finding,) = looked(good, select="GL701")
    assert finding.severity == "error" and finding.first_step == 3 and "while all weights are finite" in finding.message
    bad = Context(step=3, nonfinite=NonfiniteFacts(step=3, has_bad_target=True, weights=("a.weight",), num_weights=2))
    assert looked(bad, select="GL701") == []


def test_data_that_is_looked_at_with_a_finite_loss_is_told_too():
    (finding,) = looked(*given(nonfinite=2.0)[:1], select="GL701")
    assert finding.sites == ("first.weight",)


# Real trainings.


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))


def conv() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x[:, :, None])[0][:, -1])


NETS = {"mlp": mlp, "conv": conv, "gru": Recurrent}
FIRST = {"mlp": "0.weight", "conv": "1.weight", "gru": "gru.weight_ih_l0"}


def batches(bad_at: int = -1, scale: float = 1.0, shift: float = 0.0, bad_target: bool = False) -> Batches:
    torch.manual_seed(0)
    for step in range(26):
        x = torch.randn(32, 6)
        y = x[:, :1].sin() + x[:, 1:2] + 0.3 * torch.randn(32, 1) + shift
        if step == bad_at:
            (y if bad_target else x)[3] = float("nan")
        yield scale * x, y


def train(model: nn.Module, data: Batches, loss: Callable[..., torch.Tensor] = F.mse_loss) -> list[Finding]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gradlab.watch(
        model, optimizer, taps=[Tap("*", of="weight_grad")], diagnose=Diagnose(select=DATA), strict=True
    ) as monitor:
        for x, y in data:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    return [one for one in monitor.findings if one.explained_by is None]


@pytest.mark.parametrize("net", NETS)
def test_real_trainings_on_raw_numbers_and_shifted_targets(net: str):
    assert [(one.code, one.sites[:1]) for one in train(NETS[net](), batches(scale=100.0))] == [("GL510", (FIRST[net],))]
    assert [one.code for one in train(NETS[net](), batches(shift=1000.0))] == ["GL511"]
    by_hand = train(NETS[net](), batches(shift=1000.0), lambda a, b: (a - b).square().mean())
    assert [one.code for one in by_hand] == ["GL511"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("step", [10, 13])
def test_a_bad_sample_is_named_at_whatever_step(net: str, step: int):
    (finding,) = train(NETS[net](), batches(bad_at=step))
    assert (finding.code, finding.sites[:1], finding.first_step) == ("GL701", (FIRST[net],), step)
    (finding,) = train(NETS[net](), batches(bad_at=step, bad_target=True))
    assert (finding.code, finding.first_step) == ("GL701", step)


@pytest.mark.parametrize("net", NETS)
def test_healthy_twins_are_silent(net: str):
    assert train(NETS[net](), batches()) == []
    first = nn.Sequential(nn.BatchNorm1d(6), NETS[net]())
    assert train(first, batches(scale=100.0)) == []


class Shaky(nn.Module):
    """No parameters; from its seventh call on its slope is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + (x - x).sqrt() if self.calls > 6 else x


def test_a_gradient_that_is_not_finite_is_placed_at_the_module_that_made_it():
    (finding,) = train(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Shaky(), nn.Linear(8, 1)), batches())
    assert (finding.code, finding.sites[0], finding.first_step) == ("GL702", "2", 6)
