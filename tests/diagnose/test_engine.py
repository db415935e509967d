"""The engine: when rules are asked, how long a case must last, when it ends and comes back, what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradlab
from gradlab import Abstain, Diagnose, Evidence, Finding
from gradlab.diagnose import Diagnosis
from gradlab.diagnose.context import Context
from gradlab.diagnose.registry import registered, rule
from gradlab.errors import GradlabWarning, UsageError

pytestmark = pytest.mark.usefixtures("own_rules")

Seen = Callable[[Context], Iterable[Evidence]]


def evidence(*sites: str, **others: Any) -> Evidence:
    return Evidence(**{"message": "it is wrong.", "remedy": "Mend it.", "sites": sites, **others})


def make(look: Seen | None = None, code: str = "AA101", name: str = "a-rule", **options: Any) -> None:
    """A rule that sees what `look` gives; by default the case at every look."""
    rule(code, name, certainty="exact", **options)(look or (lambda context: [evidence("a")]))


def at_steps(*steps: int) -> Seen:
    return lambda context: [evidence("a")] if context.step in steps else []


def looks(diagnosis: Diagnosis, steps: Iterable[int], **context: Any) -> list[list[Finding]]:
    """What each look gives out."""
    return [diagnosis.look(Context(step=step, **context)) for step in steps]


# Persistence.


def test_a_case_must_be_seen_in_so_many_looks_in_a_row() -> None:
    make(at_steps(1, 2, 4, 5, 6), holds=3)
    diagnosis = Diagnosis()
    told = looks(diagnosis, range(8))
    assert [len(one) for one in told] == [0, 0, 0, 0, 0, 0, 1, 0]
    (finding,) = diagnosis.findings
    assert (finding.first_step, finding.last_step) == (4, 6)


def test_evidence_may_say_how_long_it_must_last_and_since_when_it_has() -> None:
    make(lambda context: [evidence("a", holds=1, first_step=2)], holds=5)
    (finding,) = Diagnosis().look(Context(step=7))
    assert (finding.first_step, finding.last_step) == (2, 7)


def test_cases_are_told_apart_by_their_keys() -> None:
    make(lambda context: [evidence(key=key) for key in ("one", "two")[: 1 + context.step % 2]], holds=2)
    diagnosis = Diagnosis()
    looks(diagnosis, range(6))
    assert [one.key for one in diagnosis.findings] == ["one"]  # the other is never there twice in a row


def test_a_finding_is_told_once_and_again_where_it_is_worse_or_wider() -> None:
    states = {3: evidence("a", "b"), 5: evidence("a", severity="error"), 6: evidence("a", "c")}
    make(lambda context: [states.get(context.step, evidence("a"))])
    diagnosis = Diagnosis()
    told = looks(diagnosis, range(8))
    assert [len(one) for one in told] == [1, 0, 0, 1, 0, 1, 1, 0]
    (finding,) = diagnosis.findings
    assert (finding.severity, set(finding.sites)) == ("error", {"a", "b", "c"})  # it keeps what it had
    assert (finding.first_step, finding.last_step) == (0, 7)


# Ending, and coming back.


def test_a_finding_ends_after_looks_without_it_and_comes_back_as_another() -> None:
    make(at_steps(0, 1, 2, 6, 7), ends_after=3)
    diagnosis = Diagnosis()
    looks(diagnosis, range(10))
    assert [(one.first_step, one.last_step) for one in diagnosis.findings] == [(0, 2), (6, 7)]


def test_a_short_gap_does_not_end_a_finding() -> None:
    make(at_steps(0, 1, 4, 5), ends_after=3)
    diagnosis = Diagnosis()
    looks(diagnosis, range(6))
    assert [(one.first_step, one.last_step) for one in diagnosis.findings] == [(0, 5)]


def test_by_default_an_end_takes_three_times_as_long_as_a_beginning() -> None:
    make(holds=4)
    assert registered()["AA101"].ends_after == 12


def test_at_the_end_one_look_fewer_is_enough_but_never_a_single_one() -> None:
    for holds, steps, found in ((3, 2, 1), (3, 1, 0), (2, 1, 0), (4, 2, 0)):
        make(holds=holds)
        diagnosis = Diagnosis()
        looks(diagnosis, range(steps - 1))
        diagnosis.look(Context(step=steps - 1, is_end=True))
        assert len(diagnosis.findings) == found, (holds, steps)


# When a rule is asked.


def test_young_trainings_and_rising_rates_are_left_alone() -> None:
    make(after=10, in_warmup=False)
    diagnosis = Diagnosis()
    assert looks(diagnosis, [8]) == [[]]
    rising = np.array([[0, 0.1], [11, 0.2]])
    assert looks(diagnosis, [12], learning_rates=rising) == [[]]
    assert len(looks(diagnosis, [40], learning_rates=rising)[0]) == 1


def test_at_the_end_a_young_training_is_asked_about() -> None:
    make(after=10)
    assert len(Diagnosis().look(Context(step=3, is_end=True))) == 1


def test_rules_of_frames_are_asked_at_frames_alone() -> None:
    make(clock="frame")
    diagnosis = Diagnosis()
    assert looks(diagnosis, [0, 1]) == [[], []]
    assert len(diagnosis.look_at_frame(Context(step=2))) == 1


def test_previews_have_to_be_selected() -> None:
    make(is_preview=True)
    assert looks(Diagnosis(), [0]) == [[]]
    assert len(Diagnosis(Diagnose(select="AA101")).look(Context(step=0))) == 1


# What is left out.


def test_selected_rules_alone_are_asked() -> None:
    make()
    make(code="AA202", name="another-rule")
    for select, codes in (("AA1", ["AA101"]), (["another-rule"], ["AA202"]), ("AA", ["AA101", "AA202"])):
        assert [one.code for one in Diagnosis(Diagnose(select=select)).look(Context(step=0))] == codes


def test_what_is_ignored_is_not_found_anywhere_or_at_some_sites() -> None:
    make(lambda context: [evidence("encoder.0", "head")])
    make(lambda context: [evidence()], code="AA202", name="of-the-run")
    for ignore, sites in (
        ("AA101", None),
        ("a-rule", None),
        ("AA101@encoder.*", ("head",)),
        (["AA101@encoder.*", "AA1@head"], None),
        ("AA101@decoder.*", ("encoder.0", "head")),
    ):
        found = {one.code: one.sites for one in Diagnosis(Diagnose(ignore=ignore)).look(Context(step=0))}
        assert found.get("AA101") == sites and "AA202" in found
    found_at_run = Diagnosis(Diagnose(ignore="AA202@encoder.*")).look(Context(step=0))
    assert [one.code for one in found_at_run] == ["AA101", "AA202"]


def test_findings_from_elsewhere_are_ignored_alike() -> None:
    def of(*sites: str) -> Finding:
        return Finding(code="GL703", name="nonfinite-origin", first_step=1, message="x.", sites=sites)

    diagnosis = Diagnosis(Diagnose(ignore="GL703@encoder.*"))
    assert diagnosis.add(of("encoder.0")) == [] and len(diagnosis.add(of("head"))) == 1
    assert Diagnosis(Diagnose(ignore="nonfinite-origin")).add(of("head")) == []


def test_a_limit_takes_the_place_of_the_rules_own() -> None:
    make(lambda context: [evidence()] if context.limit(1.0) < 0.7 else [])
    make(lambda context: [evidence()] if context.limit(1.0) < 0.7 else [], code="AA102", name="with-its-own")
    for limits in ({"AA101": 0.5}, {"a-rule": 0.5}):
        assert [one.code for one in Diagnosis(Diagnose(limits=limits)).look(Context(step=0))] == ["AA101"]
    assert len(Diagnosis(Diagnose(limits={"AA": 0.5})).look(Context(step=0))) == 2


def test_a_name_of_no_rule_is_refused() -> None:
    make()
    with pytest.raises(UsageError, match=r"no rule has the code or name 'a-rul'\. Did you mean 'a-rule'"):
        Diagnose(select="a-rul")


# Abstaining, and failing.


def test_a_rule_that_cannot_tell_says_what_is_missing_until_it_can() -> None:
    def look(context: Context) -> list[Evidence]:
        if context.step < 2:
            raise Abstain("the loss is not known")
        context.readings["update.norm"]
        return []

    make(look)
    diagnosis = Diagnosis()
    looks(diagnosis, [0, 1])
    assert diagnosis.abstained == {"AA101": "the loss is not known"}
    looks(diagnosis, [2])
    assert diagnosis.abstained == {"AA101": "update.norm is not measured"}


def test_abstaining_neither_ends_a_finding_nor_begins_one() -> None:
    def look(context: Context) -> list[Evidence]:
        if context.step in (2, 3, 4):
            raise Abstain("nothing is measured")
        return [evidence("a")] if context.step != 5 else []

    make(look, ends_after=2)
    diagnosis = Diagnosis()
    looks(diagnosis, range(8))
    assert [(one.first_step, one.last_step) for one in diagnosis.findings] == [(0, 7)] and diagnosis.abstained == {}


def broken(context: Context) -> list[Evidence]:
    raise ZeroDivisionError("by nothing")


def test_a_rule_that_raises_is_asked_no_more_and_the_others_are() -> None:
    asked = []
    make(lambda context: asked.append(context.step) or broken(context))
    make(code="AA202", name="another-rule")
    failed: list[tuple[str, str]] = []
    diagnosis = Diagnosis(on_failure=lambda code, error: failed.append((code, str(error))))
    told = looks(diagnosis, range(3))
    assert (asked, failed) == ([0], [("AA101", "by nothing")])
    assert [one.code for one in told[0]] == ["AA202"]


def test_without_somebody_to_tell_what_a_rule_raises_is_raised() -> None:
    make(broken)
    with pytest.raises(ZeroDivisionError):
        Diagnosis().look(Context(step=0))


def train(steps: int = 4, **options: Any) -> gradlab.Monitor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(model, optimizer, performance=False, **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,))).backward()
            optimizer.step()
    return monitor


def test_in_training_one_line_names_the_rule_that_was_switched_off() -> None:
    make(broken)
    make(code="AA202", name="another-rule")
    with pytest.warns(GradlabWarning) as said:
        monitor = train()
    assert [str(one.message) for one in said] == [
        "gradlab: the rule AA101 was switched off: ZeroDivisionError: by nothing"
    ]
    assert [one.code for one in monitor.findings] == ["AA202"]
    assert len(monitor.history("weight_grad.norm", "0.weight")[0]) == 4


def test_strict_raises_what_a_rule_raises() -> None:
    make(broken)
    with pytest.raises(ZeroDivisionError):
        train(strict=True)


COLLECTORS = [
    "gradlab.facts.collection.read_graph",
    "gradlab.facts.collection.ParameterReading",
    "gradlab.facts.collection.GraphReading",
    "gradlab.facts.collection.ModuleModes",
]


@pytest.mark.parametrize("collector", COLLECTORS)
def test_facts_that_fail_are_gathered_no_more_and_one_line_says_so(
    collector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(collector, fail)
    with pytest.warns(GradlabWarning) as said:
        monitor = train()
    (line,) = [str(one.message) for one in said]
    assert line.startswith("gradlab: ") and line.endswith("ZeroDivisionError: by nothing")
    assert len(monitor.history("weight_grad.norm", "0.weight")[0]) == 4
    with pytest.raises(ZeroDivisionError):
        train(strict=True)


# Causes.


def test_a_symptom_is_given_out_again_once_its_cause_is_known() -> None:
    make(code="AA301", name="a-symptom")
    make(lambda context: [evidence()] if context.step >= 2 else [], explains=("AA3",))
    diagnosis = Diagnosis()
    told = looks(diagnosis, range(4))
    assert [[(one.code, one.explained_by) for one in look] for look in told] == [
        [("AA301", None)],
        [],
        [("AA301", "AA101"), ("AA101", None)],
        [],
    ]


def test_what_is_known_of_a_cause_stays_where_a_symptom_is_renewed() -> None:
    make(explains=("AA3",))
    make(lambda context: [evidence(*"abc"[: context.step + 1])], code="AA301", name="a-symptom")
    diagnosis = Diagnosis()
    looks(diagnosis, range(3))
    assert [(one.code, one.explained_by, len(one.sites)) for one in diagnosis.findings][1] == ("AA301", "AA101", 3)


def test_findings_from_elsewhere_have_causes_and_codes_are_taken_once() -> None:
    make(explains=("GL703",))
    diagnosis = Diagnosis()
    looks(diagnosis, [0])
    (added,) = diagnosis.add(Finding(code="GL703", name="nonfinite-origin", first_step=1, message="x."))
    assert added.explained_by == "AA101"
    with pytest.raises(UsageError, match="the code AA101 is taken by the rule 'a-rule'"):
        make(name="of-another-name")
    with pytest.raises(UsageError, match="letters and three digits"):
        make(code="AA1")
