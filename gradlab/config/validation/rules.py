"""What a setting may be: rules that check nodes, describe themselves in words and as JSON Schema.

Belongs here: the kinds of rule. Does not: which rule a type annotation means (`annotations`), or what settings there
are (`schema`). The same rules hold for gradlab's settings, Lightning's Trainer and the arguments of users' classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gradlab.config.problems import Problem, quoted
from gradlab.config.validation.limits import Limit
from gradlab.config.yaml.nodes import Broken, Listing, Mapping, Node, Scalar, Setting, plain
from gradlab.config.yaml.scalars import resolve
from gradlab.errors import did_you_mean


class Rule(Protocol):
    """What a setting may be."""

    @property
    def phrase(self) -> str:
        """What it may be, in words that fit after `must be`."""

    def fits(self, node: Node) -> bool:
        """Whether the node is of the right kind, whatever is in it."""

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        """The value of the setting; what is wrong with it is added to `problems`, and then the value means nothing."""

    def schema(self) -> dict[str, Any]:
        """The rule as JSON Schema, for editors."""


@dataclass(frozen=True)
class Anything:
    """Whatever YAML can write, as dicts, lists and scalars."""

    phrase: str = "anything"

    def fits(self, node: Node) -> bool:
        return True

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        return plain(setting.node)

    def schema(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Single:
    """A scalar of some types; exactly these, so that `true` is no number and `7.0` no whole one."""

    types: tuple[type, ...]
    phrase: str
    json_type: str
    make: Callable[[Any], Any] | None = None

    def fits(self, node: Node) -> bool:
        return isinstance(node, Scalar) and type(node.value) in self.types

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        if not isinstance(setting.node, Scalar) or not self.fits(setting.node):
            complain(self, setting, problems)
            return None
        return self.make(setting.node.value) if self.make else setting.node.value

    def schema(self) -> dict[str, Any]:
        return {"type": self.json_type}


@dataclass(frozen=True)
class Choice:
    """One of a few words or numbers."""

    words: tuple[Any, ...]

    @property
    def phrase(self) -> str:
        return any_of(dict.fromkeys(map(str, self.words)))

    def fits(self, node: Node) -> bool:
        return isinstance(node, Scalar) and type(node.value) in {type(word) for word in self.words}

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        value = setting.node.value if isinstance(setting.node, Scalar) else None
        if any(type(value) is type(word) and value == word for word in self.words):
            return value
        complain(self, setting, problems)
        return None

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


@dataclass(frozen=True)
class Several:
    """A list whose items obey one rule; or, with `lengths`, of exactly so many items with a rule each."""

    items: tuple[Rule, ...]
    make: Callable[[Sequence[Any]], Any] = tuple
    fixed: bool = False

    @property
    def phrase(self) -> str:
        if self.fixed:
            return f"a list of {len(self.items)}"
        of = self.items[0]
        return "a list" if isinstance(of, Anything) else f"a list, each item {of.phrase}"

    def fits(self, node: Node) -> bool:
        return isinstance(node, Listing)

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        inner = setting.items()
        if not self.fits(setting.node) or (self.fixed and len(inner) != len(self.items)):
            complain(self, setting, problems)
            return None
        rules = self.items if self.fixed else self.items * len(inner)
        return self.make([checked(rule, item, problems) for rule, item in zip(rules, inner, strict=True)])

    def schema(self) -> dict[str, Any]:
        if self.fixed:
            size = len(self.items)
            return {
                "type": "array",
                "prefixItems": [rule.schema() for rule in self.items],
                "minItems": size,
                "maxItems": size,
            }
        return {"type": "array", "items": self.items[0].schema()}


@dataclass(frozen=True)
class Table:
    """A mapping from words to values that obey one rule."""

    value: Rule
    phrase: str = "a mapping"
    key: Rule = field(default_factory=Anything)
    """What its keys may be."""

    def fits(self, node: Node) -> bool:
        return isinstance(node, Mapping)

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        if not isinstance(setting.node, Mapping):
            complain(self, setting, problems)
            return None
        found: dict[Any, Any] = {}
        for entry in setting.node.entries:
            name = Setting(entry.key, (*setting.path, entry.key.text), entry.key.position)
            key = checked(self.key, name, problems)
            found[key] = checked(self.value, setting.under(entry), problems)
        return found

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.value.schema()}


@dataclass(frozen=True)
class Either:
    """What at least one of some rules allows."""

    options: tuple[Rule, ...]

    @property
    def phrase(self) -> str:
        return any_of(piece for option in self.options for piece in self._pieces(option))

    def _pieces(self, option: Rule) -> Iterable[str]:
        if isinstance(option, Choice):
            return dict.fromkeys(map(str, option.words))
        repeats = isinstance(option, Several) and not option.fixed and option.items[0] in self.options
        return ["a list of them" if repeats else option.phrase]

    def fits(self, node: Node) -> bool:
        return any(option.fits(node) for option in self.options)

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        """The first option that has no complaint; else the complaint of the only one that is of the right kind."""
        fitting = [option for option in self.options if option.fits(setting.node)]
        complaints: list[list[Problem]] = []
        for option in fitting:
            found: list[Problem] = []
            value = option.check(setting, found)
            if not found:
                return value
            complaints.append(found)
        if len(fitting) == 1 and not isinstance(fitting[0], Choice):
            problems += complaints[0]
        else:
            complain(self, setting, problems)
        return None

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [option.schema() for option in self.options]}


@dataclass(frozen=True)
class Limited:
    """What a rule allows, within a limit."""

    rule: Rule
    limit: Limit

    @property
    def phrase(self) -> str:
        return self.limit.phrase(self.rule.phrase)

    def fits(self, node: Node) -> bool:
        return self.rule.fits(node)

    def check(self, setting: Setting, problems: list[Problem]) -> Any:
        found: list[Problem] = []
        value = self.rule.check(setting, found)
        if not found and not self.limit.allows(value):
            if objection := getattr(self.limit, "objection", None):
                found.append(Problem(setting.position, f"{setting.name}: {objection(value)}"))
            else:
                complain(self, setting, found)
        problems += found
        return value

    def schema(self) -> dict[str, Any]:
        return {**self.rule.schema(), **self.limit.schema()}


def checked(rule: Rule, setting: Setting, problems: list[Problem]) -> Any:
    """The value of a setting by a rule. Of a value that could not be read, that is said again; it is shown once."""
    if isinstance(setting.node, Broken):
        problems.append(setting.node.problem)
        return None
    return rule.check(setting, problems)


def complain(rule: Rule, setting: Setting, problems: list[Problem]) -> None:
    """Add the problem that a setting is not what the rule allows."""
    node = setting.node
    words = [str(word) for choice in _choices(rule) for word in choice.words]
    if words and isinstance(node, Scalar) and node.value is not None:
        near = next(filter(None, (did_you_mean(text, words, most=1) for text in _cases(node.text))), "")
        message = f"{setting.name} may not be {quoted(node.value)}.{near} It may be {rule.phrase}."
    else:
        message = f"{setting.name} must be {rule.phrase}, not {seen(node)}.{_hint(rule, node)}"
    problems.append(Problem(setting.position, message))


def _cases(text: str) -> tuple[str, ...]:
    return text, text.lower(), text.upper()


def seen(node: Node) -> str:
    """What is written there, in words."""
    if isinstance(node, Listing):
        return f"a list of {len(node.items)}" if node.items else "an empty list"
    if isinstance(node, Mapping):
        return "a mapping" if node.entries else "an empty mapping"
    if not isinstance(node, Scalar) or node.value is None:
        return "null" if isinstance(node, Scalar) and node.text else "null (nothing is written there)"
    return f"the text {quoted(node.value)}" if isinstance(node.value, str) else node.text


def any_of(words: Iterable[str]) -> str:
    """`a, b or c`."""
    words = list(words)
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _choices(rule: Rule) -> list[Choice]:
    options = rule.options if isinstance(rule, Either) else (rule,)
    return [option for option in options if isinstance(option, Choice)]


def _hint(rule: Rule, node: Node) -> str:
    """The fix, where only the quotes are wrong."""
    if not isinstance(node, Scalar) or not node.text:
        return ""
    if not isinstance(node.value, str):
        as_text = Scalar(node.position, node.text, node.text, quotes=True)
        return f' In quotes it is text: "{node.text}".' if rule.fits(as_text) else ""
    try:
        value = resolve(node.text)
    except ValueError:
        return ""
    unquoted = Scalar(node.position, value, node.text)
    return " Leave out the quotes." if not isinstance(value, str) and rule.fits(unquoted) else ""
