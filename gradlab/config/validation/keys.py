"""Mappings whose keys are known: unknown, missing and misplaced keys, and the value of each key by its rule.

Belongs here: what holds for the fields of a dataclass and for the arguments of a class or of Lightning's Trainer alike.
Does not: which keys there are (`annotations` reads those of a dataclass, `signatures` those of a constructor).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from typing import Any

from gradlab.config.problems import Problem
from gradlab.config.validation.rules import Anything, Rule, checked
from gradlab.config.yaml.nodes import Entry, Mapping, Node, Setting
from gradlab.errors import did_you_mean

MISSING: Any = dataclasses.MISSING


@dataclass(frozen=True)
class Key:
    """One key that a mapping may have."""

    rule: Rule
    default: Any = MISSING
    """The value where it is left out; MISSING where it may not be."""


@dataclass(frozen=True)
class Keys:
    """The keys that a mapping may have, and how messages speak of them."""

    known: Map[str, Key]
    unknown: str
    """How the message for another key begins: `trainer has no setting`."""
    lacks: str
    """How the message for a missing key begins: `taps.0 needs`."""
    refused: Map[str, str] = field(default_factory=dict)
    """Keys that exist but are not for an experiment file, with the sentence that says what to use."""
    open: bool = False
    """Whether other keys are let through, as for a class that takes `**kwargs`."""

    def check(self, setting: Setting, problems: list[Problem], *, at: Setting | None = None) -> dict[str, Any]:
        """The values of a mapping's keys; those with problems are left out, and the problems added to `problems`.

        Args:
            setting: the mapping.
            problems: what is wrong is added here.
            at: where to point for a missing key, if not at the mapping.
        """
        values: dict[str, Any] = {}
        for entry in setting.node.entries if isinstance(setting.node, Mapping) else ():
            name, found = entry.key.text, list(self._misplaced(entry))
            if not found:
                rule = self.known[name].rule if name in self.known else Anything()
                values[name] = checked(rule, setting.under(entry), found)
            if found:
                values.pop(name, None)
                problems += found
        if absent := self.missing(setting.node):
            message = f"{self.lacks} {' and '.join(map(repr, absent))}."
            problems.append(Problem((at or setting).position, message))
        return values

    def missing(self, node: Node) -> list[str]:
        """The required keys that a mapping lacks, but for one that an unknown key was probably meant to be."""
        given = [entry.key.text for entry in node.entries] if isinstance(node, Mapping) else []
        absent = [name for name, key in self.known.items() if key.default is MISSING and name not in given]
        unknown = [name for name in given if name not in self.known]
        return [name for name in absent if not any(did_you_mean(other, [name]) for other in unknown)]

    def _misplaced(self, entry: Entry) -> Iterator[Problem]:
        """The problem of a key that may not be here."""
        name = entry.key.text
        if name in self.refused:
            yield Problem(entry.key.position, self.refused[name])
        elif name not in self.known and not self.open:
            near = did_you_mean(name, self.known, most=1) or f" It has: {', '.join(self.known) or 'none'}."
            yield Problem(entry.key.position, f"{self.unknown} {name!r}.{near}")
