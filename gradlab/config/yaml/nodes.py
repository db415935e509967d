"""Values with the place where they were written: what a YAML text becomes before it is checked.

Belongs here: the three kinds of node, finding one by its path, and a copy with one value replaced.
Does not: parsing (`reader`) or rules about values (`validation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradlab.config.problems import Position, Problem

Path = tuple[str, ...]


@dataclass(frozen=True)
class Scalar:
    """A single value: null, true or false, a number or text."""

    position: Position
    value: bool | int | float | str | None
    text: str
    """As written, without quotes."""
    quotes: bool = False
    """Whether it was written as text on purpose: in quotes, as a block, or with `!!str`."""


@dataclass(frozen=True)
class Listing:
    """A list of nodes."""

    position: Position
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Entry:
    """One `key: value` of a mapping."""

    key: Scalar
    value: Node


@dataclass(frozen=True)
class Mapping:
    """A mapping, in the order written; no key occurs twice."""

    position: Position
    entries: tuple[Entry, ...]

    def entry(self, name: str) -> Entry | None:
        """The entry of that key, or None."""
        return next((entry for entry in self.entries if entry.key.text == name), None)


@dataclass(frozen=True)
class Broken:
    """A value that could not be read."""

    problem: Problem

    @property
    def position(self) -> Position:
        """Where it is written."""
        return self.problem.position


Node = Scalar | Listing | Mapping | Broken


@dataclass(frozen=True)
class Setting:
    """A node with its name: what a rule is applied to and what a message speaks of."""

    node: Node
    path: Path = ()
    key: Position | None = field(default=None)
    """Where its key is written, for values that span lines."""

    @property
    def name(self) -> str:
        """`taps.0.of`, as an override would write it."""
        return ".".join(self.path) or "the experiment"

    @property
    def position(self) -> Position:
        """The place to point at: the value itself, or the key of a list or a mapping."""
        return self.node.position if isinstance(self.node, Scalar) or self.key is None else self.key

    def under(self, entry: Entry) -> Setting:
        """The setting that an entry of this mapping holds."""
        return Setting(entry.value, (*self.path, entry.key.text), entry.key.position)

    def items(self) -> list[Setting]:
        """The settings that a list holds."""
        nodes = self.node.items if isinstance(self.node, Listing) else ()
        return [Setting(node, (*self.path, str(index))) for index, node in enumerate(nodes)]


def plain(node: Node) -> Any:
    """The value without positions: dicts, lists and scalars."""
    if isinstance(node, Mapping):
        return {entry.key.value: plain(entry.value) for entry in node.entries}
    if isinstance(node, Listing):
        return [plain(item) for item in node.items]
    return node.value if isinstance(node, Scalar) else None


def nearest(root: Mapping, path: Path) -> Setting:
    """The setting at `path`, or the innermost one on the way to it that exists."""
    setting = Setting(root)
    for part in path:
        inner = _inner(setting, part)
        if inner is None:
            break
        setting = inner
    return setting


def _inner(setting: Setting, part: str) -> Setting | None:
    if isinstance(setting.node, Mapping):
        entry = setting.node.entry(part)
        return setting.under(entry) if entry else None
    return next((item for item in setting.items() if item.path[-1] == part), None)
