"""Mappings whose keys are known: the fields of a dataclass, or the arguments of a class or of Lightning's Trainer.

Belongs here: unknown, missing and misplaced keys, and turning a mapping into a frozen dataclass. The documentation of a
field is the string under it in the source, so that there is one sentence for the schema, the docs and `--help`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, get_type_hints

from gradlab.config.problems import Problem
from gradlab.config.validation.limits import Limit
from gradlab.config.validation.types import Anything, Limited, Rule, checked, complain
from gradlab.config.yaml.nodes import Entry, Mapping, Node, Scalar, Setting
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


@dataclass(frozen=True)
class Record:
    """A mapping that becomes a frozen dataclass.

    A dataclass may name one field as `shorthand`; a single value then stands for a mapping with that field alone.
    """

    cls: type
    limits: tuple[tuple[str, Limit], ...] = ()
    """Limits on its fields beyond their types."""

    @property
    def keys(self) -> Map[str, Key]:
        """Its fields as keys."""
        return keys_of(self.cls, self.limits)

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
            culprit = blame(self.cls, values, required(self.cls), str(error))
            entry = setting.node.entry(culprit) if culprit else None
            problems.append(Problem((setting.under(entry) if entry else setting).position, str(error)))
            return None

    def schema(self) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self.cls.__name__}"}


@lru_cache(maxsize=256)
def keys_of(cls: type, limits: tuple[tuple[str, Limit], ...] = ()) -> Map[str, Key]:
    """The fields of a dataclass, in order, with rules and defaults."""
    from gradlab.config.validation.annotations import rule_of  # a field may hold another record

    hints = annotations_of(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    known: dict[str, Key] = {}
    # The signature has what a mapping of fields lacks: `InitVar`, and whatever a constructor of the user's own takes.
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        if name in fields and not _is_setting(fields[name]):
            continue
        hint = hints.get(name, Any if parameter.annotation is parameter.empty else parameter.annotation)
        default = _default(fields[name]) if name in fields else _given(parameter.default)
        known[name] = Key(rule_of(Any if isinstance(hint, str) else hint), default)
    return known | {name: Key(Limited(known[name].rule, limit), known[name].default) for name, limit in limits}


def annotations_of(cls: type) -> Map[str, Any]:
    """The annotations of a class and its bases; those that cannot be evaluated are left out."""
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception:  # a name that exists only for type checkers: keep the others
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            names = {**vars(sys.modules.get(base.__module__, sys)), **vars(base)}
            for name, hint in vars(base).get("__annotations__", {}).items():
                try:
                    found[name] = eval(hint, names) if isinstance(hint, str) else hint
                except Exception:
                    found[name] = Any
        return found


def _given(default: Any) -> Any:
    return MISSING if default is inspect.Parameter.empty else default


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


def blame(make: Callable[..., Any], given: Map[str, Any], needed: Iterable[str], refusal: str) -> str | None:
    """Which of the values `make` refuses with this text even alone, beside those that it always needs.

    None where no single one is the cause.
    """
    base = {name: given[name] for name in needed if name in given}
    if base and _says(make, base, refusal):
        return next(iter(base)) if len(base) == 1 else None
    return next((name for name in given if _says(make, {**base, name: given[name]}, refusal)), None)


def _says(make: Callable[..., Any], given: Map[str, Any], refusal: str) -> bool:
    try:
        make(**given)
    except Exception as error:
        return str(error) == refusal
    return False


def documentation(cls: type) -> Map[str, str]:
    """The sentence under each field in the source of a class and its bases; empty where there is no source.

    Cost: reads and parses the source files, milliseconds.
    """
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
    for line, below in pairwise(body):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[line.target.id] = inspect.cleandoc(text)
    return found


def _is_setting(f: dataclasses.Field[Any]) -> bool:
    """Whether a field can be set in a file: not where it takes something that only Python can make."""
    return f.init and not f.metadata.get("python_only", False)


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _is_text(node: Node) -> bool:
    return isinstance(node, Scalar) and isinstance(node.value, str)
