"""YAML text to nodes with positions: YAML 1.2 scalars, no duplicate keys, no language tags, bounded in every direction.

PyYAML only turns the text into events here (by its C parser where there is one); composing them on a stack of our own
keeps the positions, needs no recursion whatever the nesting, and never constructs an object that a tag asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gradlab.config.problems import Position, Problem, Source, quoted
from gradlab.config.yaml.errors import explained
from gradlab.config.yaml.nodes import Broken, Entry, Listing, Mapping, Node, Scalar
from gradlab.config.yaml.scalars import resolve
from gradlab.config.yaml.text import control_character, decode, read, source_of

DEEPEST = 60
"""The most levels of lists and mappings, aliases expanded."""
MOST_VALUES = 10_000
"""The most values in a file, aliases expanded."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STANDARD = "tag:yaml.org,2002:"
_SCALAR_TAGS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
}


@dataclass(frozen=True)
class Document:
    """A file of settings as it was read."""

    content: bytes
    source: Source
    """Its text, for messages."""
    root: Node | None
    """None where the text is no single YAML document."""
    problems: list[Problem]
    """What is wrong with the text as YAML."""


def read_document(path: Path) -> Document:
    """Read a file of settings.

    Raises:
        ConfigError: in one sentence, if there is no such file or it is no text.
    """
    content = read(path)
    text = decode(path, content)
    source = source_of(str(path), text)
    return Document(content, source, *compose(source, text))


def compose(source: Source, text: str) -> tuple[Node | None, list[Problem]]:
    """The root node of a text, and what is wrong with the text.

    Returns:
        The root, or None where the text is no single YAML document; a value with a problem of its own is `Broken`.
    Cost: linear in the text, for at most `MOST_VALUES` values and `DEEPEST` levels.
    """
    if problem := control_character(source, text):
        return None, [problem]
    composer = _Composer(source)
    try:
        for event in _events(text):
            composer.take(event)
    except yaml.YAMLError as error:
        composer.problems.append(explained(source, error))
        return None, composer.problems
    except _Stop as stop:
        return None, [*composer.problems, stop.problem]
    return composer.root, composer.problems


def comment_in(text: str) -> int | None:
    """Where a comment begins at the end of a text that holds one value; None where there is none."""
    marks = [(event.start_mark.index, event.end_mark.index) for event in _events(text)]
    end = max((end for start, end in marks if end > start), default=0)  # what has no width ends after the comment
    rest = text[end:]
    return end + len(rest) - len(rest.lstrip()) if rest.lstrip().startswith("#") else None


def _events(text: str) -> Iterator[Any]:
    loader = _LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


class _Stop(Exception):
    """The text cannot be composed any further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass
class _Open:
    """A list or a mapping whose end has not come yet."""

    position: Position
    is_mapping: bool
    anchor: str | None
    refused: Broken | None
    """What it becomes where its tag is refused."""
    nodes: list[Node] = field(default_factory=list)
    """The items of a list; keys and values in turn of a mapping."""


class _Composer:
    """Events in, one root node out; remembers anchors, and how much and how deep each node is when expanded."""

    def __init__(self, source: Source) -> None:
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self._source = source
        self._count = 0
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node | None] = {}
        # Of each finished list or mapping: the node (so that its id stays taken), its values and levels when expanded.
        self._extents: dict[int, tuple[Node, int, int]] = {}

    def take(self, event: Any) -> None:
        """Use one event."""
        if isinstance(event, yaml.ScalarEvent):
            self._add(self._scalar(event), event.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._alias(event), None)
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise _Stop(Problem(self._position(event), "a second document begins here; an experiment file holds one."))

    def _scalar(self, event: Any) -> Node:
        position = self._position(event)
        tag = (event.tag or "").removeprefix(_STANDARD)
        if event.tag not in (None, "!") and tag not in ("str", *_SCALAR_TAGS):
            return self._refuse_tag(event)
        if tag in ("!", "str") or (not tag and not event.implicit[0]):
            return Scalar(position, event.value, event.value, quotes=True)
        try:
            value = resolve(event.value)
        except ValueError as error:
            return self._broken(position, str(error))
        if tag and type(value) not in _SCALAR_TAGS[tag]:
            return self._broken(position, f"{quoted(event.value)} is no !!{tag}.")
        return Scalar(position, float(value) if tag == "float" and isinstance(value, int) else value, event.value)

    def _open(self, event: Any) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        position = self._position(event)
        if len(self._stack) >= DEEPEST:
            raise _Stop(Problem(position, f"lists and mappings nest deeper than {DEEPEST} levels."))
        allowed = event.tag in (None, _STANDARD + ("map" if is_mapping else "seq"))
        refused = None if allowed else self._refuse_tag(event)
        if event.anchor:
            self._anchors[event.anchor] = None
        self._stack.append(_Open(position, is_mapping, event.anchor, refused))

    def _close(self) -> None:
        done = self._stack.pop()
        node: Node
        if done.is_mapping:
            node = Mapping(done.position, self._entries(done.nodes))
        else:
            node = Listing(done.position, tuple(done.nodes))
        self._measure(node)
        self._add(done.refused or node, done.anchor)

    def _add(self, node: Node, anchor: str | None) -> None:
        self._count += 1
        if self._count > 2 * MOST_VALUES:  # keys and values
            raise _Stop(Problem(node.position, f"the file holds more than {MOST_VALUES:,} values."))
        if anchor:
            self._anchors[anchor] = node
        if not self._stack:
            self.root = node
        else:
            self._stack[-1].nodes.append(node)

    def _alias(self, event: Any) -> Node:
        position, name = self._position(event), event.anchor
        if name not in self._anchors:
            hint = f'If it is a pattern, write it in quotes: "*{name}".'
            return self._broken(position, f"'*{name}' is an alias, and no '&{name}' comes before it. {hint}")
        node = self._anchors[name]
        if node is None:
            return self._broken(position, f"the alias '*{name}' stands inside the value that it names.")
        if len(self._stack) + self._extent(node)[1] > DEEPEST:
            raise _Stop(Problem(position, f"with this alias, lists and mappings nest deeper than {DEEPEST} levels."))
        return node

    def _entries(self, nodes: list[Node]) -> tuple[Entry, ...]:
        """The entries of a mapping: merge keys (`<<`) expanded, keys checked."""
        own: dict[tuple[type, object], Entry] = {}
        merged: list[Entry] = []
        for key, value in zip(nodes[::2], nodes[1::2], strict=True):
            if not isinstance(key, Scalar):
                if not isinstance(key, Broken):
                    self._broken(key.position, "a key must be a single word, not a list or a mapping.")
            elif key.text == "<<" and not key.quotes:
                merged += self._merged(key, value)
            elif (same := (type(key.value), key.value)) in own:
                first = own[same].key.position.line
                self._broken(key.position, f"{key.text!r} is set twice in this mapping (first on line {first}).")
            else:
                own[same] = Entry(key, value)
        for entry in merged:
            own.setdefault((type(entry.key.value), entry.key.value), entry)
        return tuple(own.values())

    def _merged(self, key: Scalar, value: Node) -> list[Entry]:
        entries: list[Entry] = []
        for node in value.items if isinstance(value, Listing) else (value,):
            if isinstance(node, Mapping):
                entries += node.entries
            elif not isinstance(node, Broken):
                self._broken(key.position, "'<<' merges a mapping or a list of mappings, usually given by an alias.")
        return entries

    def _measure(self, node: Listing | Mapping) -> None:
        """Note how many values and levels a finished node has, and stop where that is too many."""
        inner = node.items if isinstance(node, Listing) else [entry.value for entry in node.entries]
        extents = [self._extent(item) for item in inner]
        values = 1 + sum(values for values, _ in extents)
        if values > MOST_VALUES:
            message = f"this holds more than {MOST_VALUES:,} values once its aliases are expanded."
            raise _Stop(Problem(node.position, message))
        self._extents[id(node)] = node, values, 1 + max((levels for _, levels in extents), default=0)

    def _extent(self, node: Node) -> tuple[int, int]:
        """How many values and levels a node has, aliases expanded."""
        return self._extents.get(id(node), (node, 1, 0))[1:]

    def _refuse_tag(self, event: Any) -> Broken:
        tag = event.tag.replace(_STANDARD, "!!", 1)
        hint = f" If it is a pattern, write it in quotes: {tag!r}." if tag[:2] != "!!" else ""
        return self._broken(self._position(event), f"the tag {quoted(tag)} is not allowed in an experiment file.{hint}")

    def _broken(self, position: Position, message: str) -> Broken:
        self.problems.append(Problem(position, message))
        return Broken(self.problems[-1])

    def _position(self, event: Any) -> Position:
        start, end = event.start_mark, event.end_mark
        if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            length = 1
        elif start.line == end.line:
            length = end.column - start.column
        else:
            length = len(self._source.lines[start.line]) - start.column
        return Position(self._source, start.line + 1, start.column + 1, max(1, length))
