"""A mapping that becomes a dataclass: the rule for it, and the single value that may stand for such a mapping.

Which keys a dataclass has is read from its annotations by `annotations.keys_of`, which the rule is given: a field may
hold another dataclass, so the two would need each other otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Map
from dataclasses import dataclass
from typing import Any

from gradlab.config.problems import Problem
from gradlab.config.validation.keys import MISSING, Key, Keys
from gradlab.config.validation.limits import Limit
from gradlab.config.validation.refused_argument import refused_argument
from gradlab.config.validation.rules import complain
from gradlab.config.yaml.nodes import Entry, Mapping, Node, Scalar, Setting

Limits = tuple[tuple[str, Limit], ...]
"""Limits on fields of a dataclass beyond their types, by name."""


@dataclass(frozen=True)
class Record:
    """A mapping that becomes a frozen dataclass.

    A dataclass may name one field as `shorthand`; a single value then stands for a mapping with that field alone.
    """

    cls: type
    keys_of: Callable[[type, Limits], Map[str, Key]]
    """From the dataclass and the limits to its fields as keys; called only once they are needed."""
    limits: Limits = ()

    @property
    def keys(self) -> Map[str, Key]:
        """Its fields as keys."""
        return self.keys_of(self.cls, self.limits)

    @property
    def required(self) -> tuple[str, ...]:
        """The fields that have no default."""
        return tuple(name for name, key in self.keys.items() if key.default is MISSING)

    @property
    def phrase(self) -> str:
        short = shorthand(self.cls)
        return f"a {short.replace('_', ' ')} or a mapping" if short else f"a mapping ({', '.join(self.keys)})"

    def fits(self, node: Node) -> bool:
        return isinstance(node, Mapping) or (shorthand(self.cls) is not None and _is_text(node))

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        setting = expanded(self.cls, setting)
        if not isinstance(setting.node, Mapping):
            complain(self, setting, problems)
            return None
        found: list[Problem] = []
        subject = setting.name
        values = Keys(self.keys, f"{subject} has no setting", f"{subject} needs").check(setting, found)
        problems += found
        if found:
            return None
        try:
            return self.cls(**values)
        except Exception as error:
            refused = refused_argument(error, self.cls, values, self.required)
            entry = setting.node.entry(refused) if refused else None
            problems.append(Problem((setting.under(entry) if entry else setting).position, str(error)))
            return None

    def schema(self) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self.cls.__name__}"}


def shorthand(cls: type) -> str | None:
    """The field that a single value stands for, if there is one."""
    return getattr(cls, "shorthand", None)


def expanded(cls: type, setting: Setting) -> Setting:
    """The setting with a single value written out as a mapping, where the dataclass allows that."""
    short = shorthand(cls)
    if short is None or not _is_text(setting.node):
        return setting
    at = setting.node.position
    return Setting(Mapping(at, (Entry(Scalar(at, short, short), setting.node),)), setting.path, at)


def _is_text(node: Node) -> bool:
    return isinstance(node, Scalar) and isinstance(node.value, str)
