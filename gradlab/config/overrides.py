"""`key=value` arguments: the same YAML, the same rules and the same messages as the file, at a place in the argument.

A key is a path with dots, list items by number: `taps.0.every=5`. It may be one that the file lacks; the item after the
last of a list is added to it. Setting a key twice is an error: one of the two would silently do nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from gradlab.config.problems import Position, Problem, Source, quoted
from gradlab.config.validation.rules import seen
from gradlab.config.yaml.nodes import Broken, Entry, Listing, Mapping, Node, Path, Scalar
from gradlab.config.yaml.reader import comment_in, compose
from gradlab.config.yaml.scalars import resolve
from gradlab.config.yaml.text import control_character, source_of

_DEEPEST = 12  # parts of a key; no setting lies deeper
_NOT_HERE = "*!&%@`|>"  # begin things in YAML that an argument has no use for, and patterns that it has

_STRUCTURE = re.compile(r"""^\s*[\[{"']|^\s*[-?](\s|$)|:(\s|$)""")  # a list, a mapping, or text in quotes


def apply(root: Mapping, arguments: Sequence[str]) -> tuple[Mapping, list[Problem]]:
    """The root with all arguments set in it, in order, and what is wrong with the arguments themselves."""
    problems: list[Problem] = []
    done: dict[Path, int] = {}
    for number, argument in enumerate(map(_as_text, arguments), start=1):
        source = source_of(f"argument {number}", argument, number)
        key, equals, text = argument.partition("=")
        at = Position(source, 1, 1, max(1, len(key)))
        path = path_of(key)
        found = [Problem(at, message) for message in _wrong_key(key, equals, path, done)]
        if not found:
            value, found = _value(source, key, text)
        if not found:
            done[path] = number
            replaced = with_value(root, path, at, value)
            if isinstance(replaced, Mapping):
                root = replaced
            else:
                found = [replaced]
        problems += found
    return root, problems


def _as_text(argument: str) -> str:
    """The argument as text. In a locale that lacks a character Python has kept the bytes of it, which are UTF-8."""
    if argument.isprintable():
        return argument
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument


def path_of(key: str) -> Path:
    """The parts of a dotted key. What follows `sweep.over.` is one part: the keys there have dots themselves."""
    parts = tuple(key.split("."))
    return (*parts[:2], ".".join(parts[2:])) if parts[:2] == ("sweep", "over") and len(parts) > 2 else parts


def with_value(root: Mapping, path: Path, at: Position, value: Node) -> Mapping | Problem:
    """A copy of `root` with the value at `path` replaced or added; the problem, at `at`, if there can be none."""
    result = _replaced(root, path, (), at, value)
    return result if isinstance(result, Mapping | Problem) else root


def _replaced(node: Node | None, path: Path, above: Path, at: Position, value: Node) -> Node | Problem:
    if not path:
        return value
    if isinstance(node, Broken):
        return node
    if isinstance(node, Listing):
        return _in_list(node, path, above, at, value)
    if isinstance(node, Scalar) and isinstance(node.value, str) and above in (("model",), ("data",), ("optimizer",)):
        node = Mapping(node.position, (Entry(Scalar(node.position, "class_path", "class_path"), node),))
    if isinstance(node, Scalar) and node.value is not None:
        name = ".".join(above)
        return Problem(at, f"{name} is {seen(node)}; there is nothing like {path[0]!r} inside it.")
    if not isinstance(node, Mapping):  # absent or null
        if path[0] == "0" and len(path) > 1:
            return _in_list(Listing(at, ()), path, above, at, value)
        node = Mapping(at, ())
    old = node.entry(path[0])
    inner = _replaced(old.value if old else None, path[1:], (*above, path[0]), at, value)
    if isinstance(inner, Problem):
        return inner
    new = Entry(Scalar(at, path[0], path[0]), inner)
    if old is None:
        return Mapping(node.position, (*node.entries, new))
    # A key that the file has keeps its place there, for problems of what the argument did not change.
    kept = new if len(path) == 1 else Entry(old.key, inner)
    return Mapping(node.position, tuple(kept if entry is old else entry for entry in node.entries))


def _in_list(node: Listing, path: Path, above: Path, at: Position, value: Node) -> Node | Problem:
    items, index = list(node.items), int(path[0]) if path[0].isdecimal() else -1
    if not 0 <= index <= len(items):
        count = f"{len(items)} item{'s' if len(items) != 1 else ''}"
        last = f"the next is {'.'.join((*above, str(len(items))))}"
        return Problem(at, f"{'.'.join(above)} is a list of {count}, counted from 0 ({last}): no item {path[0]!r}.")
    inner = _replaced(items[index] if index < len(items) else None, path[1:], (*above, path[0]), at, value)
    if isinstance(inner, Problem):
        return inner
    return Listing(node.position, (*items[:index], inner, *items[index + 1 :]))


def _wrong_key(key: str, equals: str, path: Path, done: dict[Path, int]) -> list[str]:
    """What is wrong with an argument before its value is looked at."""
    if not equals:
        return [f"{quoted(key)} is no override; one looks like `trainer.max_epochs=5`."]
    if not all(path) or key != key.strip():
        return ["the part before '=' must name a setting, as `trainer.max_epochs` does, without blanks."]
    if len(path) > _DEEPEST:
        return [f"no setting lies {len(path)} levels deep."]
    earlier = [number for other, number in done.items() if other[: len(path)] == path]
    return [f"{key} is set already, by argument {earlier[0]}."] if earlier else []


def _value(source: Source, key: str, text: str) -> tuple[Node, list[Problem]]:
    """The value of an argument: a word as it stands, or YAML where it is a list, a mapping or in quotes.

    A word keeps what a YAML file would take away: a `#` after a blank, which begins a comment there, line breaks,
    blanks at either end. A pattern like `*/relu*` or `!head.*` needs no second quotes.
    """
    start = len(key) + 1
    at = Position(source, 1, start + 1, max(1, len(text)))
    if text[:1] in tuple(_NOT_HERE):
        return Scalar(at, text, text, quotes=True), []
    if not _STRUCTURE.search(text):
        return _word(source, at, text)
    node, problems = compose(source, " " * start + text)
    if not problems and (comment := comment_in(" " * start + text)) is not None:
        place = Position(source, 1, comment + 1, max(1, len(source.lines[0]) - comment))
        problems = [Problem(place, "'#' begins a comment here. If it is text, write that in quotes.")]
    return (Scalar(at, None, "") if node is None else node), problems


def _word(source: Source, at: Position, text: str) -> tuple[Node, list[Problem]]:
    """A number, true, false or null, blanks around it left out; else the text as it stands."""
    if problem := control_character(source, "\n".join(source.lines)):
        return Scalar(at, None, ""), [problem]
    try:
        value = resolve(text.strip())
    except ValueError as error:
        return Scalar(at, None, ""), [Problem(at, str(error))]
    return Scalar(at, text if isinstance(value, str) else value, text), []
