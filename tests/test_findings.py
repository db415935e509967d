"""The findings of one run together: newest states, causes first."""

from __future__ import annotations

from dataclasses import replace

from gradlab.finding import Finding
from gradlab.findings import causes, is_repeated, latest, ranked


def found(code: str, first_step: int = 0, **fields) -> Finding:
    return Finding(code=code, first_step=first_step, name=code.lower(), message=f"{code}.", **fields)


def test_a_later_state_takes_the_place_of_the_earlier_one() -> None:
    early, other = found("GL1"), found("GL2")
    late = replace(early, last_step=9, severity="error")
    assert latest([early, other, late]) == [late, other]
    assert latest([early, found("GL1", key="b"), found("GL1", 5)]) == [early, found("GL1", key="b"), found("GL1", 5)]


def test_findings_without_a_code_are_told_apart_by_what_they_say() -> None:
    one, two = (Finding(name="mine", first_step=0, message=text) for text in ("a.", "b."))
    assert latest([one, two, one]) == [one, two]


def test_symptoms_are_under_their_cause() -> None:
    root, news = found("GL2", 7), found("GL1", severity="info")
    first, second = found("GL5", 1, explained_by="GL2"), found("GL4", 0, explained_by="GL2")
    assert ranked([first, news, second, root]) == [root, news, second, first]
    assert [(one.finding, one.symptoms) for one in causes([first, news, second, root])] == [
        (root, (second, first)),
        (news, ()),
    ]


def test_none_is_lost_where_causes_are_missing_or_go_in_circles() -> None:
    a, b = found("GL1", explained_by="GL2"), found("GL2", explained_by="GL1")
    assert [one.finding for one in causes([a, b])] == [a, b]
    twice = [found("GL1"), found("GL1", key="b"), found("GL3", explained_by="GL1")]
    assert [len(one.symptoms) for one in causes(twice)] == [1, 0]


def test_a_state_that_says_only_until_when_is_a_repeated_one() -> None:
    one = found("GL1")
    assert is_repeated(one, one) and is_repeated(one, replace(one, last_step=5))
    assert not is_repeated(one, replace(one, last_step=5, explained_by="GL2"))
