"""Findings on the terminal: three causes at most, what follows from each under it, the rest counted."""

from __future__ import annotations

import io

from gradlab.finding import Finding
from gradlab.summary.terminal import console, print_findings


def found(code: str, first_step: int = 1, **fields) -> Finding:
    named = {"name": "odd", "message": f"{code} is there.", "remedy": "Mend it."} | fields
    return Finding(code=code, first_step=first_step, **named)


def printed(*findings: Finding, num_steps: int = 10, **options) -> list[str]:
    file = io.StringIO()
    print_findings(console(file), findings, num_steps=num_steps, **options)
    return file.getvalue().splitlines()


def test_without_findings_that_is_said() -> None:
    assert printed() == ["no findings"]


def test_a_cause_has_severity_code_onset_sentence_and_remedy_and_its_symptoms_in_a_short_line() -> None:
    lines = printed(
        found("GL402", 8, name="flat", explained_by="GL201"),
        found("GL201", 3, severity="error", sites=("net.3",)),
        show="gradlab show x",
    )
    assert lines == [
        "error GL201 since step 3: GL201 is there. Mend it.",
        "  explains GL402 flat (since step 8)",
        "all of them, with their numbers: gradlab show x",
    ]


def test_causes_after_the_third_are_counted_in_a_line_news_last() -> None:
    lines = printed(found("GL901", severity="info"), *(found(f"GL20{n}") for n in range(4)))
    assert [line.split()[1] for line in lines[:3]] == ["GL200", "GL201", "GL202"]
    assert lines[3:] == ["and 2 findings more: GL203 odd, GL901 odd"]


def test_all_of_them_come_with_sites_and_numbers() -> None:
    cause = found("GL201", sites=("a", "b"), evidence={"ratio": 0.25})
    lines = printed(cause, found("GL402", explained_by="GL201"), all_of_them=True)
    assert lines == [
        "warning GL201 since step 1: GL201 is there. Mend it.",
        "  odd, exact; at a, b; ratio 0.25",
        "  explains warning GL402 since step 1: GL402 is there. Mend it.",
        "    odd, exact",
    ]


def test_what_has_ended_says_until_when() -> None:
    assert printed(found("GL1", 3, last_step=40), num_steps=50)[0].startswith("warning GL1 since step 3: ")
    assert printed(found("GL1", 3, last_step=40), num_steps=500)[0].startswith("warning GL1 steps 3 to 40: ")
    assert printed(found("GL1", 3), num_steps=500)[0].startswith("warning GL1 at step 3: ")


def test_markup_in_names_is_text() -> None:
    assert "[red]" in printed(found("GL1", message="[red] is a name."))[0]
