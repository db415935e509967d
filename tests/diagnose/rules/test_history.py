"""Jumps of the loss are dated, a loss without end is told, and slow or settled ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab.diagnose import Diagnose, Diagnosis
from gradlab.diagnose.context import Context, LossSeries, TargetFacts
from gradlab.finding import Finding
from gradlab.frame import Frame, Schema, Series

RANDOM = np.random.default_rng(0)
FALLING = 2 * 0.97 ** np.arange(120) * np.exp(0.1 * RANDOM.standard_normal(120)) + 0.05


def looked(values: np.ndarray, select: str, **more: object) -> list[Finding]:
    series = LossSeries(root="NllLoss", steps=np.arange(len(values)), values=values)
    made = Context(step=len(values) - 1, losses=[series], **more)  # type: ignore[arg-type]
    diagnosis = Diagnosis(Diagnose(select=[select]))
    for _ in range(2):
        diagnosis.look(made)
    return diagnosis.findings


def with_spikes(*places: int) -> np.ndarray:
    values = FALLING.copy()
    values[list(places)] = 40.0
    return values


def test_a_spike_is_dated_with_the_gradient_that_left_first():
    frames = []
    for step in range(81):
        norms = np.array([1.0, 1.0, 1.0]) * np.exp(0.1 * RANDOM.standard_normal(3))
        if step == 80:
            norms[1:] *= 100
        schema = Schema("weight_grad.norm", ("a", "b", "c"))
        frames.append(Frame(step, 0.0, {"weight_grad.norm": Series(schema, norms.astype(np.float32))}))
    (finding,) = looked(with_spikes(80, 81), "GL705", frames=frames)
    assert (finding.first_step, finding.severity, finding.sites) == (80, "info", ("b",))
    assert "the loss was 40 at step 80" in finding.message and "that of b" in finding.message


@pytest.mark.parametrize("values", [FALLING, with_spikes(80), with_spikes(118, 119), -FALLING, FALLING[:10]])
def test_no_spike(values: np.ndarray):
    assert looked(values, "GL705") == []


def test_a_loss_that_grows_without_end_is_told():
    growing = 0.5 * 1.08 ** np.arange(120)
    (finding,) = looked(growing, "GL706")
    assert finding.severity == "warning" and "the loss grows" in finding.message
    ended = FALLING.copy()
    ended[100:] = np.nan
    (finding,) = looked(ended, "GL706")
    assert finding.first_step == 100 and "not finite since step 100" in finding.message


def test_a_loss_that_grows_with_its_target_or_settles_is_not():
    growing = 0.5 * 1.08 ** np.arange(120)
    targets = [[TargetFacts(loss="MseLoss", numel=8, mean=size, std=0.1)] for size in (0.1, 10.0, 200.0)]
    assert looked(growing, "GL706", targets=targets) == []
    for values in (FALLING, -growing, 1 + growing[:60] / 50):
        assert looked(values, "GL706") == []
    assert Diagnosis(Diagnose(select=["GL706"])).look(Context(step=99)) == []
