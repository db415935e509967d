"""Rules for values that a file writes as text, numbers or mappings and a constructor takes as objects.

Members of enums, dtypes and devices, dates and durations, decimals, classes and functions by their path, typed
dictionaries and named tuples; and what no file can write, which is refused by its name.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradlab.config.problems import Problem, quoted
from gradlab.config.validation.keys import MISSING, Key, Keys
from gradlab.config.validation.rules import Choice, complain
from gradlab.config.yaml.nodes import Listing, Mapping, Node, Scalar, Setting


@dataclass(frozen=True)
class Member(Choice):
    """A member of an enum: by its name or, where that is a text, a number or true and false, by its value."""

    members: tuple[enum.Enum, ...] = ()

    @classmethod
    def of(cls, members: tuple[enum.Enum, ...]) -> Member:
        """The rule for these members."""
        values = [member.value for member in members if type(member.value) in (str, int, float, bool)]
        names = [member.name for member in members]
        return cls((*names, *(value for value in values if value not in names)), members)

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        value = setting.node.value if isinstance(setting.node, Scalar) else None
        for member in self.members:
            if isinstance(value, str) and member.name == value:
                return member
        for member in self.members:
            if type(member.value) is type(value) and member.value == value and value is not None:
                return member
        complain(self, setting, problems)
        return None


@dataclass(frozen=True)
class Parsed:
    """A scalar that a function makes an object of, which raises where it cannot."""

    phrase: str
    make: Callable[[str], Any]
    types: tuple[type, ...] = (str,)

    def fits(self, node: Node) -> bool:
        return isinstance(node, Scalar) and type(node.value) in self.types

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        node = setting.node
        if isinstance(node, Scalar) and self.fits(node):
            try:
                return self.make(node.text)
            except Exception:  # whatever it raises, it takes no such value
                problems.append(Problem(setting.position, f"{setting.name} must be {self.phrase}, not {node.text!r}."))
                return None
        complain(self, setting, problems)
        return None

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class Imported:
    """A class or a function by its path, `torch.nn.ReLU`."""

    base: type | None = None
    """What the class must derive from; None where anything that can be called will do."""

    @property
    def phrase(self) -> str:
        kind = f"a subclass of {self.base.__name__}" if self.base not in (None, object) else "a class"
        return f"the path of {kind if self.base else 'a class or a function'}, as text"

    def fits(self, node: Node) -> bool:
        return isinstance(node, Scalar) and isinstance(node.value, str)

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        if not isinstance(setting.node, Scalar) or not self.fits(setting.node):
            complain(self, setting, problems)
            return None
        path = str(setting.node.value)
        try:
            value = _found(path)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            problems.append(Problem(setting.position, f"{setting.name}: {path!r} cannot be imported ({reason})."))
            return None
        is_right = isinstance(value, type) and issubclass(value, self.base) if self.base else callable(value)
        if not is_right:
            problems.append(Problem(setting.position, f"{setting.name} must be {self.phrase}; {path} is not."))
            return None
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class NamedFields:
    """A mapping with certain keys that becomes no dataclass; a list too, where they are `ordered`."""

    name: str
    keys: tuple[tuple[str, Key], ...]
    make: Callable[..., Any]
    ordered: bool = False

    @property
    def phrase(self) -> str:
        kind = "a list or a mapping" if self.ordered else "a mapping"
        return f"{kind} ({', '.join(name for name, _ in self.keys)})"

    def fits(self, node: Node) -> bool:
        return isinstance(node, Mapping) or (self.ordered and isinstance(node, Listing))

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        if not self.fits(setting.node):
            complain(self, setting, problems)
            return None
        found: list[Problem] = []
        keys = Keys(dict(self.keys), f"{setting.name} has no setting", f"{setting.name} needs")
        if isinstance(setting.node, Listing):
            items = setting.items()
            if len(items) > len(self.keys):
                complain(self, setting, problems)
                return None
            pairs = zip(self.keys, items, strict=False)
            values = {name: key.rule.check(item, found) for (name, key), item in pairs}
            absent = [name for name, key in self.keys[len(items) :] if key.default is MISSING]
            if absent:
                found.append(Problem(setting.position, f"{keys.lacks} {' and '.join(map(repr, absent))}."))
        else:
            values = keys.check(setting, found)
        problems += found
        return None if found else self.make(**values)

    def schema(self) -> dict[str, Any]:
        return {"type": ["object", "array"] if self.ordered else "object"}


@dataclass(frozen=True)
class Unwritable:
    """What no file can write, such as a Tensor."""

    name: str

    @property
    def phrase(self) -> str:
        return f"a value of type {self.name}, which an experiment file cannot hold"

    def fits(self, node: Node) -> bool:
        return False

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        message = f"{setting.name} takes {self.phrase}. Give the class an argument of another type, or leave it out."
        problems.append(Problem(setting.position, message))
        return None

    def schema(self) -> dict[str, Any]:
        return {"not": {}}


@dataclass(frozen=True)
class OnlyNull:
    """Null, where whatever else an annotation allows cannot be written."""

    names: tuple[str, ...]

    @property
    def phrase(self) -> str:
        return f"null: a value of type {' or '.join(self.names)} cannot be written in an experiment file"

    def fits(self, node: Node) -> bool:
        return isinstance(node, Scalar) and node.value is None

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        if not self.fits(setting.node):
            shown = quoted(setting.node.value) if isinstance(setting.node, Scalar) else "this"
            problems.append(Problem(setting.position, f"{setting.name} may not be {shown}, only {self.phrase}."))
        return None

    def schema(self) -> dict[str, Any]:
        return {"type": "null"}


def _found(path: str) -> Any:
    """The object at a dotted path; the longest beginning of it that is a module is imported."""
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError("a path looks like my_module.name")
    value: Any = importlib.import_module(parts[0])
    for done, part in enumerate(parts[1:], start=1):
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(".".join(parts[: done + 1]))
            except ModuleNotFoundError:
                raise AttributeError(f"{'.'.join(parts[:done])} has no {part!r}") from None
    return value
