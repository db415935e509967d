"""The page's own files: every module is asked for at once, and none can run text as code or load from elsewhere."""

from __future__ import annotations

import re

import pytest

from gradlab.board.assets import plotly_script, static_files

MODULES = {name: content.decode() for name, content in static_files().items() if name.endswith(".js")}


def test_every_module_is_asked_for_ahead():
    (listed,) = re.findall(r"const MODULES = \[(.*?)\]", MODULES["index.js"], re.DOTALL)
    ahead = re.findall(r'"(\w+)"', listed)
    assert ahead == sorted(set(ahead))
    assert {f"{name}.js" for name in ahead} == MODULES.keys() - {"index.js", "report.js"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_line_is_longer_than_a_line_of_python(name):
    assert [line for line in MODULES[name].splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_types_are_left_open_only_where_the_answers_of_the_server_enter(name):
    """What `make check` finds with TypeScript's compiler is worth as much as the types that it checks."""
    comments = "\n".join(re.findall(r"/\*\*.*?\*/", MODULES[name], re.DOTALL))
    assert len(re.findall(r"\{[^{}]*\bany\b", comments)) == (name == "source.js")
    assert re.findall(r"@ts-\w+", comments) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_runs_text_as_code_or_parses_html(name):
    text = MODULES[name]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "http://"):
        assert word not in re.sub(r'"http://www\.w3\.org/2000/svg"', "", text), word
    assert "https://" not in text


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_import_is_there(name):
    for imported in re.findall(r'from "\./([^"]+)"', MODULES[name]):
        assert imported in MODULES, imported


def test_plotly_comes_from_its_wheel():
    assert b"plotly.js v" in plotly_script()[:200]
