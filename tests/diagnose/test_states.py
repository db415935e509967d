"""States of a finding: it is given out when it begins, when it changes, when it has ended, and at the end of all."""

from __future__ import annotations

import pytest

from gradlab.diagnose import Diagnose, Diagnosis, registry
from gradlab.diagnose.context import Context
from gradlab.diagnose.registry import Evidence, rule


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps at which the one rule that is asked sees its case."""
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))
    steps: set[int] = set()

    @rule("ST001", "of-these-steps", certainty="exact", ends_after=2)
    def of_these_steps(context):
        """One of some steps."""
        if context.step in steps:
            yield Evidence(message="it is one.", remedy="Wait.")

    return steps


def test_an_end_is_given_out_with_the_last_step_at_which_it_was_seen(bad: set[int]) -> None:
    bad |= {1, 2}
    diagnosis = Diagnosis(Diagnose(select="ST001"))
    given = {step: diagnosis.look(Context(step=step)) for step in range(6)}
    states = [(step, one.first_step, one.last_step) for step, found in given.items() for one in found]
    assert states == [(1, 1, 1), (4, 1, 2)]
    assert diagnosis.end() == []


def test_what_goes_on_is_given_out_at_the_end_of_all(bad: set[int]) -> None:
    bad |= {1, 2, 3}
    diagnosis = Diagnosis(Diagnose(select="ST001"))
    for step in range(4):
        diagnosis.look(Context(step=step))
    assert [(one.first_step, one.last_step) for one in diagnosis.end()] == [(1, 3)]
    assert diagnosis.end() == []
