"""What a YAML parser says, in plain words: the likely cause first, since `did not find expected key` helps nobody."""

from __future__ import annotations

import re
from typing import Any

from gradlab.config.render import Position, Problem, Source

_INDENT_WITH_TAB = re.compile(r"[ ]*\t")

# (what the parser was doing, what it says; both as parts of its text, by either of PyYAML's parsers) -> our sentence
_SENTENCES = (
    ("alias", "alphabetic", "'*' begins an alias in YAML. If this is a pattern, write it in quotes: \"*\"."),
    ("anchor", "alphabetic", "'&' begins an anchor in YAML. If this is text, write it in quotes."),
    ("simple key", "could not find", "a key needs a colon and a space after it: `key: value`."),
    ("flow sequence", "expected", "this list has no end: a comma or a ']' is missing before here."),
    ("flow mapping", "expected", "this mapping has no end: a comma or a '}' is missing before here."),
    ("quoted scalar", "end of stream", "these quotes are never closed."),
    ("quoted scalar", "escape", "unknown escape in double quotes. Write '\\\\' for a backslash, or use single quotes."),
    ("block mapping", "expected", "this line is indented like nothing above it: bring it in line with its neighbours."),
    ("block collection", "expected", "this line belongs neither to the list above it nor to anything else."),
    (
        "",
        "values are not allowed",
        "a colon does not belong here: one `key: value` a line; text with ': ' needs quotes.",
    ),
    ("block node", "content", "a value is missing here."),
    ("tag", "", "'!' begins a tag in YAML. If this is a pattern, write it in quotes."),
    ("", "undefined tag handle", "'!' begins a tag in YAML. If this is a pattern, write it in quotes."),
)


def explained(source: Source, error: Any) -> Problem:
    """The problem for an error of PyYAML's."""
    mark = getattr(error, "problem_mark", None)
    doing, said = getattr(error, "context", None) or "", getattr(error, "problem", None) or str(error)
    if "no end" in (sentence := _sentence(doing, said)) or "never closed" in sentence:
        opened = getattr(error, "context_mark", None)
        return Problem(_position(source, opened or mark), sentence.replace("is missing before here", "is missing"))
    position = _position(source, mark)
    line = source.lines[position.line - 1] if position.line else ""
    if tabs := _INDENT_WITH_TAB.match(line):
        place = Position(source, position.line, len(tabs[0]))
        return Problem(place, "this line is indented with a tab; YAML allows only spaces there.")
    if "cannot start" in said:
        character = line[position.column - 1 : position.column]
        sentence = f"a value cannot begin with {character!r}. If it is text, write it in quotes."
    return Problem(position, sentence)


def _sentence(doing: str, said: str) -> str:
    for part, words, sentence in _SENTENCES:
        if part in doing and words in said:
            return sentence
    return f"this is not YAML: {said}{f' ({doing})' if doing else ''}."


def _position(source: Source, mark: Any) -> Position:
    """A parser's mark as a position; the end of the text becomes its last line that holds anything."""
    if mark is None:
        return Position(source)
    line, column = mark.line + 1, mark.column + 1
    while line > len(source.lines) or (line > 1 and not source.lines[line - 1].strip()):
        line -= 1
        column = len(source.lines[line - 1]) + 1
    return Position(source, line, column)
