"""Causes and symptoms: which finding explains which, and in which order people read them."""

from __future__ import annotations

from typing import Any

import pytest

from gradlab.diagnose.ranking import LATEST, explained
from gradlab.diagnose.registry import registered, rule
from gradlab.finding import Finding
from gradlab.findings import ranked

pytestmark = pytest.mark.usefixtures("own_rules")


def make(code: str, *explains: str) -> None:
    rule(code, f"rule-{code.lower()}", certainty="exact", explains=explains)(lambda context: [])


def found(code: str, first_step: int = 5, **others: Any) -> Finding:
    return Finding(code=code, name=code, message=f"{code}.", first_step=first_step, **others)


def causes(*findings: Finding) -> dict[str, str | None]:
    return {one.code: one.explained_by for one in explained(findings, registered())}


def test_a_cause_explains_by_code_or_beginning_of_codes_whatever_the_order() -> None:
    for code in ("AA201", "AA301", "AA302"):
        make(code)
    make("AA101", "AA201", "AA3")
    assert causes(found("AA301"), found("AA101"), found("AA201"), found("AA302")) == {
        "AA301": "AA101",
        "AA101": None,
        "AA201": "AA101",
        "AA302": "AA101",
    }


def test_a_chain_leads_to_its_root() -> None:
    make("AA101", "AA201")
    make("AA201", "AA301")
    make("AA301")
    assert causes(found("AA301"), found("AA201"), found("AA101"))["AA301"] == "AA101"


def test_a_cause_comes_no_later_than_its_symptom_but_for_a_few_looks() -> None:
    make("AA101", "AA201")
    make("AA201")
    assert causes(found("AA101", 5 + LATEST), found("AA201", 5))["AA201"] == "AA101"
    assert causes(found("AA101", 6 + LATEST), found("AA201", 5))["AA201"] is None


def test_what_is_only_news_explains_nothing() -> None:
    make("AA101", "AA201")
    make("AA201")
    assert causes(found("AA101", severity="info"), found("AA201"))["AA201"] is None


def test_a_circle_has_a_root_and_a_finding_is_not_its_own_cause() -> None:
    make("AA101", "AA2", "AA1")
    make("AA201", "AA101")
    assert causes(found("AA101"), found("AA101", key="2")) == {"AA101": None}
    both = causes(found("AA101"), found("AA201"))
    assert list(both) == ["AA101", "AA201"]  # it ends


def test_of_several_causes_the_surest_and_worst_counts() -> None:
    make("AA101", "AA3")
    make("AA201", "AA3")
    make("AA301")
    surest = causes(found("AA101", certainty="scale-free", severity="error"), found("AA201"), found("AA301"))
    assert surest["AA301"] == "AA201"
    worst = causes(found("AA101"), found("AA201", severity="error"), found("AA301"))
    assert worst["AA301"] == "AA201"


def test_a_cause_that_is_there_no_more_explains_no_more() -> None:
    make("AA101", "AA201")
    make("AA201")
    assert causes(found("AA201", explained_by="AA101")) == {"AA201": None}


def test_findings_of_somebodys_own_have_no_cause() -> None:
    make("AA101", "")
    mine = Finding(name="mine", message="x.", first_step=5)
    assert explained([found("AA101"), mine], registered())[1].explained_by is None


def test_roots_are_read_first_by_certainty_severity_onset_and_extent_and_news_last() -> None:
    wide, narrow = found("AA105", sites=("a", "b")), found("AA106", sites=("a",))
    order = [
        found("AA108", severity="error"),
        found("AA107", 2),
        wide,
        narrow,
        found("AA104", certainty="scale-free", severity="error"),
        found("AA103", certainty="own history"),
        found("AA102", severity="info"),
    ]
    assert [one.code for one in ranked(list(reversed(order)))] == [one.code for one in order]


def test_symptoms_follow_all_roots_in_the_order_of_their_causes() -> None:
    late, early = found("AA301", explained_by="AA102"), found("AA302", explained_by="AA101")
    order = ranked([late, early, found("AA102"), found("AA101", severity="error")])
    assert [one.code for one in order] == ["AA101", "AA102", "AA302", "AA301"]
