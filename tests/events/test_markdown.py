"""Texts of others inside a Markdown table, as TensorBoard renders it."""

import html
import re
import warnings

import pytest

from gradlab.events.markdown import cell, code_cell
from gradlab.launch.outputs import answers_card, run_card
from gradlab.runs.folder import RunFolder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorBoard's own, of a package that it ships
    from tensorboard.plugin_util import markdown_to_safe_html

AWKWARD = [
    "two\nlines",
    "two\r\nlines",
    "a | b",
    "`code` and ``more``",
    "ends in `",
    "<b>bold</b> & <script>",
    "*stars* _lines_ ~~gone~~",
    "[link](http://x) ![image](y)",
    "back\\slash \\| \\`",
    "&amp;",
    "# heading",
    "- item",
    "1. one",
    "| --- |",
    "line\u2028separator",
    "  blanks  ",
    "größe ✓",
    "",
]


def cells(markdown):
    """The text of every cell of the rows below the head, as a browser shows it."""
    page = markdown_to_safe_html(markdown)
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)[1:]
    texts = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"</?code>", "", text)) for text in row] for row in texts]


def shown(text):
    return re.sub("[\n\r\u2028]", "↵", text).strip()


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("make", [cell, code_cell])
def test_a_text_is_shown_as_it_is_and_its_row_stays_one(make, text):
    table = f"| a | b |\n|---|---|\n| {make(text)} | 1 |\n| next | 2 |"
    assert cells(table) == [[shown(text), "1"], ["next", "2"]]


def test_a_very_long_text_is_cut_and_says_so():
    assert cell("x" * 5000) == "x" * 1000 + "… (5,000 characters)"


def test_cards_hold_whatever_the_user_has_written(tmp_path):
    record = {"started": "now", "argv": ["gradlab", "a\nb | c"], "git": None, "seed": 0, "devices": [], "versions": {}}
    resolved = "text: |\n  ```\n  fence\n"
    card = run_card(RunFolder(tmp_path / "x" / "y"), {**record, "host": {"name": "h", "cpus": 1}}, resolved)
    assert ["command", "gradlab a↵b | c"] in cells(card)
    assert "````yaml\n" in card and card.endswith("\n````\n")
    assert cells(answers_card({"a|b": "1\n2"})) == [["a|b", "1↵2"]]
