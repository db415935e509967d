"""What a YAML parser says, in plain words: the likely cause first, since `did not find expected key` helps nobody."""

from __future__ import annotations

import re
from typing import Any

from gradlab.config.problems import Position, Problem, Source

_INDENT_WITH_TAB = re.compile(r"[ ]*\t")
_WORD = re.compile(r"[^\s,\]}]+")
_KEY = re.compile(r".*:(\s|$)")

_AT_ERROR, _AT_START = False, True

# What the parser was doing and what it says, both as parts of its text, by either of PyYAML's parsers; whether to point
# at where it noticed or at where the unfinished thing starts; our sentence.
_SENTENCES = (
    ("anchor", "alphabetic", _AT_START, "'&' begins an anchor in YAML. If this is text, write it in quotes."),
    ("simple key", "could not find", _AT_START, "a key needs a colon and a space after it: `key: value`."),
    ("flow sequence", "expected", _AT_START, "this list has no end: a comma or a ']' is missing."),
    ("flow mapping", "expected", _AT_START, "this mapping has no end: a comma or a '}' is missing."),
    ("quoted scalar", "end of stream", _AT_START, "these quotes are never closed."),
    ("quoted scalar", "escape", _AT_ERROR, "unknown escape. In double quotes a backslash is written twice."),
    ("block mapping", "expected", _AT_ERROR, "this line is not indented like the settings beside it."),
    ("block collection", "expected", _AT_ERROR, "this line belongs neither to the list above it nor to anything else."),
    ("", "are not allowed", _AT_ERROR, "a colon does not belong here. Text that has ': ' in it needs quotes."),
    ("block node", "content", _AT_ERROR, "a value is missing here."),
    ("tag", "", _AT_START, "'!' begins a tag in YAML. If this is a pattern, write it in quotes."),
    ("", "undefined tag handle", _AT_ERROR, "'!' begins a tag in YAML. If this is a pattern, write it in quotes."),
)


def explained(source: Source, error: Any) -> Problem:
    """The problem for an error of PyYAML's."""
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    doing, said = getattr(error, "context", None) or "", getattr(error, "problem", None) or str(error)
    position = _position(source, mark)
    line = source.lines[position.line - 1] if position.line else ""
    if tabs := _INDENT_WITH_TAB.match(line):
        place = Position(source, position.line, len(tabs[0]))
        return Problem(place, "this line is indented with a tab; YAML allows only spaces there.")
    if "alias" in doing and start:
        return _star(source, start)
    if "are not allowed" in said and mark and (problem := _no_colon_above(source, mark)):
        return problem
    if "cannot start" in said:
        character = line[position.column - 1 : position.column]
        return Problem(position, f"a value cannot begin with {character!r}. If it is text, write it in quotes.")
    for part, words, at_start, sentence in _SENTENCES:
        if part in doing and words in said:
            return Problem(_position(source, start) if at_start and start else position, sentence)
    return Problem(position, f"this is not YAML: {said}{f' ({doing})' if doing else ''}.")


def _star(source: Source, mark: Any) -> Problem:
    """The problem of a pattern without quotes."""
    word = _WORD.match(source.lines[mark.line], mark.column)
    text = word[0] if word else "*"
    message = f"'*' begins an alias in YAML. If this is a pattern, write it in quotes: \"{text}\"."
    return Problem(Position(source, mark.line + 1, mark.column + 1, len(text)), message)


def _no_colon_above(source: Source, mark: Any) -> Problem | None:
    """The problem of a line such as `name:x` or `name x`, which a parser notices only at the colon after it."""
    lines = [number for number in range(mark.line) if source.lines[number].split("#")[0].strip()]
    if not lines or ":" in source.lines[mark.line][: mark.column]:
        return None
    above = source.lines[lines[-1]].split(" #")[0].rstrip()
    if _KEY.match(above) or above.lstrip().startswith("-"):
        return None
    indent = len(above) - len(above.lstrip())
    place = Position(source, lines[-1] + 1, indent + 1, len(above) - indent)
    return Problem(place, "a colon and a space are missing here: a setting is written `key: value`.")


def _position(source: Source, mark: Any) -> Position:
    """A parser's mark as a position; the end of the text becomes its last line that holds anything."""
    if mark is None:
        return Position(source)
    line, column = mark.line + 1, mark.column + 1
    while line > len(source.lines) or (line > 1 and not source.lines[line - 1].strip()):
        line -= 1
        column = len(source.lines[line - 1]) + 1
    return Position(source, line, column)
