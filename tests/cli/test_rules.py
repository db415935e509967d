"""`gradlab rules`, and the pages that are made of the same texts."""

from __future__ import annotations

import json

import pytest

from gradlab.cli import rules_pages


def test_the_table_has_every_code_with_one_line(gradlab):
    result = gradlab("rules")
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert result.exit_code == 0
    assert lines["code"][:3] == ["name", "certainty", "severity"]
    assert lines["GL201"][:4] == ["double-softmax", "exact", "warning", "A"]
    assert lines["GL704"][0] == "skipped-update"


def test_as_json_it_is_a_list_with_the_same_codes_as_the_pages(gradlab):
    rows = json.loads(gradlab("rules", "--json").stdout)
    assert {f"{row['code']}.md" for row in rows} <= set(rules_pages.pages())
    assert all(row["summary"].endswith(".") and row["severity"] in ("info", "warning", "error") for row in rows)


@pytest.mark.parametrize("name", ["GL201", "gl201", "double-softmax"])
def test_a_rule_says_what_it_sees_and_how_it_is_silenced(gradlab, name):
    text = gradlab("rules", name).stdout
    assert text.startswith("GL201 double-softmax (warning, exact)\n")
    places = [text.index(f"\n{head}.") for head in ("What it sees", "Why it hurts", "What to do", "How to silence it")]
    assert places == sorted(places)
    assert "gradlab attach --ignore GL201 train.py" in text and "**" not in text


def test_a_rule_has_its_limits_with_what_was_measured(gradlab):
    assert "\nLimits.\n  0.5  Decay by the step" in gradlab("rules", "GL303").stdout
    (limit,) = json.loads(gradlab("rules", "GL303", "--json").stdout)["limits"]
    assert limit["usual"] == 0.5 and "healthy" in limit["about"]


def test_unknown_codes_are_refused_with_near_ones(gradlab):
    result = gradlab("rules", "double-sofmax")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no rule has the code or name 'double-sofmax'. Did you mean 'double-softmax'?" in result.stderr


def test_a_beginning_of_codes_names_them(gradlab):
    result = gradlab("rules", "GL30")
    assert result.exit_code == 2
    assert result.stderr.startswith("'GL30' is the beginning of ") and "GL303" in result.stderr


def test_the_pages_in_the_repository_are_up_to_date():
    there = {path.name: path.read_text(encoding="utf-8") for path in rules_pages.FOLDER.glob("*.md")}
    made = rules_pages.pages()
    stale = sorted(name for name in there.keys() | made.keys() if there.get(name) != made.get(name))
    assert not stale, f"run python -m gradlab.cli.rules_pages, and commit: {stale}"


def test_pages_of_rules_that_are_no_more_go(tmp_path):
    (tmp_path / "GL000.md").write_text("old")
    rules_pages.write(tmp_path)
    assert not (tmp_path / "GL000.md").exists()
    assert (tmp_path / "GL201.md").read_text().count("**How to silence it.**") == 1
