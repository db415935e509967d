"""A rank whose numbers are far from those of the others is named, once, with the first site at which they are."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab.diagnose import Diagnosis
from gradlab.diagnose.context import Context
from gradlab.finding import Finding
from gradlab.findings import latest
from gradlab.frame import ABSENT, Frame, Schema, Series


def frame(step: int, metric: str, values: dict[str, list[float]]) -> Frame:
    """One metric: for each site, a norm a rank."""
    names = tuple(f"{site}@rank{rank}" for site, norms in values.items() for rank in range(len(norms)))
    numbers = np.array([norm for norms in values.values() for norm in norms], np.float32)
    for place, norm in enumerate(norm for norms in values.values() for norm in norms):
        if norm == -1:
            numbers[place] = ABSENT
    return Frame(step, 0.0, {metric: Series(Schema(metric, names), numbers)})


def looked(*frames: Frame) -> list[Finding]:
    diagnosis = Diagnosis()
    return [found for one in frames for found in diagnosis.look_at_frame(Context(step=one.step, frames=[one]))]


def test_the_rank_and_the_first_site_are_named() -> None:
    values = {"a": [1.0, 1.1, 0.9], "b": [1.0, 0.9, 41.0], "c": [1.0, 1.0, 50.0]}
    (finding,) = looked(frame(7, "output.norm@ranks", values))
    assert finding.kind == "rank_stands_out" and finding.site == "b@rank2" and finding.step == 7
    assert finding.message == (
        "rank 2 stands out at step 7: the norm of its output at b is 41 times the median over ranks."
    )
    assert finding.evidence == {
        "output.norm@ranks of rank 2": pytest.approx(41.0),
        "the median over ranks": pytest.approx(1.0),
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_rank_that_alone_is_not_finite_is_named(bad: float) -> None:
    (finding,) = looked(frame(3, "weight_grad.norm@ranks", {"all parameters": [1.0, bad], "w": [1.0, bad]}))
    assert "rank 1 stands out at step 3" in finding.message and "is not finite, that of the other is" in finding.message
    assert "gradient before reduction" in finding.message and finding.severity == "error"


@pytest.mark.parametrize(
    "values",
    [
        {"a": [1.0, 4.0, 0.5]},
        {"a": [float("nan"), float("nan")]},
        {"a": [0.0, 0.0, 3.0]},
        {"a": [1.0, -1, 1.2]},
        {"a": [-1, -1, 5.0]},
    ],
    ids=["ordinary spread", "all are not finite", "others are silent", "one did not run", "the others did not run"],
)
def test_what_is_no_alarm(values: dict[str, list[float]]) -> None:
    assert looked(frame(0, "output_grad.norm@ranks", values)) == []


def test_of_two_ranks_the_larger_one_is_named() -> None:
    (finding,) = looked(frame(0, "output.norm@ranks", {"a": [100.0, 1.0]}))
    assert "rank 0 stands out" in finding.message


def test_a_rank_that_is_silent_stands_out_among_several() -> None:
    (finding,) = looked(frame(0, "output_grad.norm@ranks", {"a": [1.0, 1.0, 0.0, 1.2]}))
    assert "rank 2 stands out" in finding.message


def test_it_is_said_once_until_it_is_over() -> None:
    good, bad = {"a": [1.0, 1.0, 1.0]}, {"a": [1.0, 30.0, 1.0]}
    frames = [frame(step, "output.norm@ranks", values) for step, values in enumerate([bad, bad, good, bad])]
    assert [(one.first_step, one.last_step) for one in latest(looked(*frames))] == [(0, 1), (3, 3)]
