"""A problem in an experiment file or an override: where it is, what it is, and how it is shown.

Belongs here: positions, rendering with the source line and a caret, and the ConfigError that carries them all.
Does not: finding problems.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from gradlab.errors import ConfigError

_WIDEST = 120  # columns of a source line that are shown; a longer one is cut around the caret
_MOST = 50  # problems that are shown; all are counted
_GUTTER = 6  # columns of the line number


@dataclass(frozen=True)
class Source:
    """A text that settings come from: the experiment file, or one `key=value` argument."""

    name: str
    """What messages call it: the path as given, or `argument 1`."""
    lines: tuple[str, ...] = field(default=(), repr=False)
    """Its lines without their ends."""
    argument: int = 0
    """The number of the argument, from 1; 0 for the file."""


@dataclass(frozen=True)
class Position:
    """A stretch of one line of a source. Lines and columns count characters from 1; line 0 is the source as a whole."""

    source: Source
    line: int = 0
    column: int = 1
    length: int = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in one sentence, at one place."""

    position: Position
    message: str

    def __str__(self) -> str:
        """`file:line:column: message`, with the source line and carets under it where there is a line."""
        at = self.position
        where = at.source.name
        if at.line and not at.source.argument:
            where += f":{at.line}:{at.column}"
        return "\n".join([f"{where}: {self.message}", *_picture(at)])


def render(problems: Iterable[Problem]) -> str:
    """All problems, the file's before the arguments', in the order of their lines, each once, and their number."""
    found = in_order(problems)
    count = f"{len(found)} problem{'s' if len(found) != 1 else ''}"
    if len(found) > _MOST:
        count += f" (the first {_MOST} are shown)"
    return "\n".join([*map(str, found[:_MOST]), f"{count}; nothing was run."])


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems sorted by place, without repetitions."""
    return tuple(sorted(dict.fromkeys(problems), key=_place))


def refusal(problems: Iterable[Problem]) -> ConfigError:
    """The ConfigError that carries these problems and whose text is their rendering."""
    shown = in_order(problems)
    return ConfigError(render(shown), problems=shown)


def quoted(value: object, most: int = 60) -> str:
    """`repr` of a value, cut in the middle where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-17:]}"


def _place(problem: Problem) -> tuple[int, int, int]:
    at = problem.position
    return at.source.argument, at.line, at.column


def _picture(at: Position) -> list[str]:
    """The source line and the line of carets under it; nothing for a source as a whole."""
    if not 1 <= at.line <= len(at.source.lines):
        return []
    before, marked, after = _window(at.source.lines[at.line - 1], at.column - 1, at.length)
    number = "" if at.source.argument else str(at.line)
    return [
        f"{number:>{_GUTTER}} | {before}{marked}{after}".rstrip(),
        f"{'':>{_GUTTER}} | {' ' * _columns(before)}{'^' * max(1, _columns(marked))}",
    ]


def _window(text: str, start: int, length: int) -> tuple[str, str, str]:
    """The text before, under and after the carets, printable, cut to what fits on a line."""
    low, high = 0, len(text)
    if len(text) > _WIDEST:
        low = max(0, min(start - _WIDEST // 3, len(text) - _WIDEST))
        high = low + _WIDEST
    end = min(start + length, high)
    before = ("…" if low else "") + _printable(text[low:start])
    after = _printable(text[end:high]) + ("…" if high < len(text) else "")
    return before, _printable(text[start:end]), after


def _printable(text: str) -> str:
    """Tabs as four spaces; control and direction characters, which could rewrite a terminal, as `\\ufffd`."""
    return "".join(
        "    " if c == "\t" else "\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text
    )


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes: wide characters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )
