"""Findings on the board: newest states, symptoms under their cause, what is over in grey; in words in the report."""

from __future__ import annotations

import pytest
from board.conftest import log_findings
from board.test_page import opened, painted

from gradlab.board import answers
from gradlab.board.file_source import FileSource
from gradlab.board.html_report import report
from gradlab.board.query import Query


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    log_findings(folder)
    return folder


def test_the_answer_has_the_newest_state_of_each_and_symptoms_after_their_cause(diagnosed):
    answer = answers.findings(FileSource(diagnosed, "net"), Query({"run": ["net"]}))
    found = [(one["code"], one["symptom"], one["ended"], one["last_step"]) for one in answer["findings"]]
    assert found == [("GL702", False, True, 12), ("GL301", False, False, 89), ("GL401", True, False, 89)]


def test_the_report_begins_with_what_was_trained_and_what_was_found(diagnosed):
    html = report(diagnosed, "net", "net <b>, 24 parameters, was trained for 90 steps.")
    (lead,) = [line for line in html.splitlines() if line.startswith('<p class="about">')]
    assert lead == (
        '<p class="about">net &lt;b&gt;, 24 parameters, was trained for 90 steps. What was found: '
        "At step 12 (GL702): a number is not finite. Since step 5 (GL301): the steps are too large. "
        "Divide the learning rate by 10. 1 more finding is listed beside the picture.</p>"
    )


@pytest.mark.browser
@pytest.mark.slow
def test_causes_have_lanes_and_a_click_goes_to_the_place_and_the_metric(chromium, diagnosed, tmp_path):
    html = tmp_path / "report.html"
    html.write_text(report(diagnosed, "net"))
    with opened(chromium, html.as_uri(), offline=True) as page:
        painted(page)
        page.wait_for_selector(".finding")
        assert page.locator(".about").inner_text().startswith("net has 90 steps. What was found: ")
        assert page.locator(".lane-name").all_inner_texts() == ["GL702", "GL301"]
        assert [page.locator(".lane").nth(n).locator(".mark").count() for n in (0, 1)] == [1, 2]
        heads = page.locator(".findings > li > .finding .finding-head b").all_inner_texts()
        assert heads == ["GL702 nonfinite", "GL301 step too large"]
        assert page.locator(".finding.ended b").all_inner_texts() == ["GL702 nonfinite"]
        assert page.locator(".symptoms .finding b").all_inner_texts() == ["GL401 dead"]
        page.locator(".finding", has_text="step too large").click()
        page.wait_for_selector(".side .site-name")
        assert page.locator(".side .site-name").inner_text() == "blocks.0.attn.weight"
        assert page.locator(".flow-title code").inner_text() == "update.norm"
