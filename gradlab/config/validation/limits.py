"""Limits that a type cannot say, for use in annotations: `Annotated[int, Range(0)]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol


class Limit(Protocol):
    """A condition on a value that has the right type already.

    One that has a method `objection` says by it, in a sentence, what is wrong with a value that it does not allow.
    """

    def allows(self, value: Any) -> bool:
        """Whether the value is within the limit."""

    def phrase(self, kind: str) -> str:
        """What is allowed, in words, given the words for the type."""

    def schema(self) -> dict[str, Any]:
        """The limit as JSON Schema."""


@dataclass(frozen=True)
class Range:
    """A number from `least` to `most`, both included; NaN is in no range. Null is up to the type, not to limits."""

    least: float | None = None
    most: float | None = None

    def allows(self, value: Any) -> bool:
        return value is None or (
            value == value
            and not ((self.least is not None and value < self.least) or (self.most is not None and value > self.most))
        )

    def phrase(self, kind: str) -> str:
        least = "" if self.least is None else f" from {self.least}"
        return kind + least + ("" if self.most is None else f" to {self.most}")

    def schema(self) -> dict[str, Any]:
        bounds = {"minimum": self.least, "maximum": self.most}
        return {key: bound for key, bound in bounds.items() if bound is not None}


@dataclass(frozen=True)
class Spelled:
    """Text that a regular expression matches as a whole, with the words that say so."""

    pattern: str
    words: str

    def allows(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def phrase(self, kind: str) -> str:
        return self.words

    def schema(self) -> dict[str, Any]:
        return {"pattern": f"^(?:{self.pattern})$"}


@dataclass(frozen=True)
class NotEmpty:
    """A list or a mapping with something in it."""

    def allows(self, value: Any) -> bool:
        return len(value) > 0

    def phrase(self, kind: str) -> str:
        return f"{kind} with something in it"

    def schema(self) -> dict[str, Any]:
        return {"minItems": 1, "minProperties": 1}


@dataclass(frozen=True)
class Entries:
    """How many entries of a tensor, from 1, or which ones: flat indices from 0. None is all."""

    def allows(self, value: Any) -> bool:
        if isinstance(value, int):
            return value >= 1
        return value is None or (len(value) > 0 and min(value) >= 0)

    def phrase(self, kind: str) -> str:
        return "a whole number from 1, a list of indices from 0 or null"

    def schema(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Fields:
    """Limits on the fields of a dataclass that belongs to another part: `Annotated[Profile, fields(wait=Range(0))]`.

    The dataclass refuses the same values when it is made; here they are known beforehand, each with its place.
    """

    limits: tuple[tuple[str, Limit], ...]


def fields(**limits: Limit) -> Fields:
    """Limits by the names of fields."""
    return Fields(tuple(limits.items()))
