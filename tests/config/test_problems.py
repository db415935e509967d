"""How problems are shown."""

from __future__ import annotations

from gradlab.config import Position, Problem, refusal, render
from gradlab.config.yaml.text import source_of


def shown(text: str, column: int, length: int = 1) -> list[str]:
    return str(Problem(Position(source_of("e.yaml", text), 1, column, length), "m")).splitlines()[1:]


def test_carets_stand_under_their_text_behind_tabs_wide_and_combining_characters():
    assert shown("a:\tbc", 4, 2) == ["     1 | a:    bc", "       |       ^^"]
    assert shown("漢: 字字 x", 4, 2) == ["     1 | 漢: 字字 x", "       |     ^^^^"]
    assert shown("e\u0301: x", 5) == ["     1 | e\u0301: x", "       |    ^"]


def test_characters_that_could_rewrite_a_terminal_are_not_shown():
    assert shown("a\x1b[31m\u202eb", 8) == ["     1 | a\ufffd[31m\ufffdb", "       |        ^"]


def test_a_long_line_is_cut_around_the_caret():
    source, carets = shown("x" * 5000 + "HERE" + "y" * 5000, 5001, 4)
    assert len(source) < 140
    assert source[carets.index("^") : carets.rindex("^") + 1] == "HERE"
    assert source.startswith("     1 | …x")
    assert source.endswith("y…")


def test_problems_are_sorted_counted_and_shown_once():
    file, argument = source_of("e.yaml", "a\nb"), source_of("argument 1", "c=d", 1)
    problems = [
        Problem(Position(argument, 1, 3), "late"),
        Problem(Position(file, 2, 1), "second"),
        Problem(Position(file, 2, 1), "second"),
        Problem(Position(file, 1, 1), "first"),
        Problem(Position(file), "whole"),
    ]
    assert render(problems).splitlines() == [
        "e.yaml: whole",
        "e.yaml:1:1: first", "     1 | a", "       | ^",
        "e.yaml:2:1: second", "     2 | b", "       | ^",
        "argument 1: late", "       | c=d", "       |   ^",
        "4 problems; nothing was run.",
    ]  # fmt: skip
    assert [problem.message for problem in refusal(problems).problems] == ["whole", "first", "second", "late"]


def test_no_more_than_fifty_problems_are_shown_and_all_are_counted():
    source = source_of("e.yaml", "\n".join("x" * 99))
    said = render(Problem(Position(source, line), "m") for line in range(1, 100)).splitlines()
    assert len(said) == 151
    assert said[-1] == "99 problems (the first 50 are shown); nothing was run."
