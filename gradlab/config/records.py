"""Mappings whose keys are known: the fields of a dataclass, or the arguments of a class or of Lightning's Trainer.

Belongs here: unknown, missing and misplaced keys, and turning a mapping into a frozen dataclass. The documentation of a
field is the string under it in the source, so that there is one sentence for the schema, the docs and `--help`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_type_hints

from gradlab.config.nodes import Entry, Mapping, Node, Scalar, Setting
from gradlab.config.render import Problem
from gradlab.config.rules import Rule, checked, complain
from gradlab.errors import did_you_mean

MISSING: Any = dataclasses.MISSING


@dataclass(frozen=True)
class Key:
    """One key that a mapping may have."""

    rule: Rule
    default: Any = MISSING
    """The value where it is left out; MISSING where it may not be."""
    documentation: str = ""


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
        entries = setting.node.entries if isinstance(setting.node, Mapping) else ()
        for entry in entries:
            found = list(self._misplaced(entry))
            inner = setting.under(entry)
            if not found and (key := self.known.get(entry.key.text)):
                value = checked(key.rule, inner, found)
            else:
                value = None
            if not found:
                values[entry.key.text] = value
            problems += found
        given = {entry.key.text for entry in entries}
        absent = [name for name, key in self.known.items() if key.default is MISSING and name not in given]
        if absent:
            message = f"{self.lacks} {' and '.join(map(repr, absent))}."
            problems.append(Problem((at or setting).position, message))
        return values

    def _misplaced(self, entry: Entry) -> Iterator[Problem]:
        """The problem of a key that may not be here."""
        name = entry.key.text
        if name in self.refused:
            yield Problem(entry.key.position, self.refused[name])
        elif name not in self.known and not self.open:
            near = did_you_mean(name, self.known) or f" It has: {', '.join(self.known) or 'none'}."
            yield Problem(entry.key.position, f"{self.unknown} {name!r}.{near}")


@dataclass(frozen=True)
class Record:
    """A mapping that becomes a frozen dataclass.

    A dataclass may name one field as `shorthand`; a single value then stands for a mapping with that field alone.
    """

    cls: type

    @property
    def phrase(self) -> str:
        short = shorthand(self.cls)
        return f"{short.replace('_', ' ')} or a mapping" if short else f"a mapping ({', '.join(keys_of(self.cls))})"

    def fits(self, node: Node) -> bool:
        return isinstance(node, Mapping) or (shorthand(self.cls) is not None and _is_text(node))

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        setting = expanded(self.cls, setting)
        if not isinstance(setting.node, Mapping):
            complain(self, setting, problems)
            return None
        found: list[Problem] = []
        subject = setting.name
        values = Keys(keys_of(self.cls), f"{subject} has no setting", f"{subject} needs").check(setting, found)
        problems += found
        if found:
            return None
        try:
            return self.cls(**values)
        except Exception as error:
            culprit, text = blame(self.cls, values, required(self.cls)) or (None, str(error))
            entry = setting.node.entry(culprit) if culprit else None
            problems.append(Problem((setting.under(entry) if entry else setting).position, text))
            return None

    def schema(self) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self.cls.__name__}"}


@lru_cache(maxsize=256)
def keys_of(cls: type) -> Map[str, Key]:
    """The fields of a dataclass, in order, with rules, defaults and documentation."""
    from gradlab.config.annotations import rule_of  # a field may hold another record

    hints = get_type_hints(cls, include_extras=True)
    sentences = documentation(cls)
    return {
        f.name: Key(rule_of(hints[f.name]), _default(f), sentences.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if f.init
    }


def required(cls: type) -> tuple[str, ...]:
    """The fields of a dataclass that have no default."""
    return tuple(name for name, key in keys_of(cls).items() if key.default is MISSING)


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


def blame(make: Callable[..., Any], given: Map[str, Any], needed: Iterable[str]) -> tuple[str, str] | None:
    """Which of the values `make` refuses even alone (beside the needed ones), and the text of its refusal.

    `make` is known to raise for all of them together. None where no single one is the cause.
    """
    base = {name: given[name] for name in needed if name in given}
    for name in [name for name in given if name not in base] if len(base) != 1 else given:
        try:
            make(**{**base, name: given[name]})
        except Exception as error:
            return name, str(error)
    return None


@lru_cache(maxsize=256)
def documentation(cls: type) -> Map[str, str]:
    """The sentence under each field in the source of a class and its bases; empty where there is no source."""
    sentences: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            sentences |= _sentences(base)
    return sentences


def _sentences(cls: type) -> dict[str, str]:
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    found = {}
    for line, below in zip(body, body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[line.target.id] = inspect.cleandoc(text)
    return found


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _is_text(node: Node) -> bool:
    return isinstance(node, Scalar) and isinstance(node.value, str)
