"""Value objects: frozen dataclasses that are equal, hashed, printed and pickled by their fields, and read-only.

Belongs here: what any of them inherits, and one-line texts of plain Python values. Does not: what the fields mean, or
arrays (`arrays`), since the options of an experiment are checked without numpy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import singledispatch
from typing import Any, NoReturn, Self

MOST_SHOWN = 3
_LONGEST_TEXT = 80


class ReadOnlyDict(dict[Any, Any]):
    """A dict that cannot be written to. (A `MappingProxyType` cannot be pickled, nor turned into JSON by `json`.)"""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this mapping cannot be written to, others hold it too: dict(...) makes a copy that can be.")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(equality_key(self))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[dict[Any, Any]]]:
        return type(self), (dict(self),)


class Value:
    """What a frozen dataclass is given: equality, hash, one-line repr, copy and pickle.

    Two are equal where their fields are, NaN being equal to NaN. Made with `@dataclass(frozen=True, eq=False,
    repr=False)`; what can be written to is replaced in `__post_init__`. A copy is the object itself, as of a tuple of
    numbers; a pickle is made anew by the constructor, as protected as it was.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return _fields_key(self) == _fields_key(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(_fields_key(self))

    def __repr__(self) -> str:
        shown = (f"{name}={abridged(value)}" for name, value in non_default_fields(self))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return rebuilt, (type(self), dict(_fields(self)))


def rebuilt(kind: type[Any], fields: dict[str, Any]) -> Any:
    """A pickled value made anew by its constructor."""
    return kind(**fields)


@singledispatch
def equality_key(value: Any) -> Hashable:
    """Something hashable that is equal for equal values, NaN equal to NaN. (`arrays` registers that of arrays.)"""
    if isinstance(value, dict):
        return frozenset((name, equality_key(content)) for name, content in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(equality_key, value))
    if isinstance(value, float) and math.isnan(value):
        return _NAN
    return value if isinstance(value, Hashable) else id(value)


_NAN = ("NaN",)


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]


def _fields_key(value: object) -> Hashable:
    return tuple(equality_key(content) for _, content in _fields(value))


# One line for people.


def non_default_fields(value: Any) -> Iterable[tuple[str, Any]]:
    """The fields of a dataclass that differ from their defaults, with their contents."""
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or equality_key(default) != equality_key(content):
            yield field.name, content


@singledispatch
def abridged(value: Any) -> str:
    """A value in a few words: the first of many numbers, the beginning of a long text; never more than a line."""
    if isinstance(value, Mapping):
        return "{" + few(f"{name!r}: {abridged(content)}" for name, content in value.items()) + "}"
    if isinstance(value, list | tuple):
        open_, close = "[]" if isinstance(value, list) else "()"
        return f"{open_}{few(map(abridged, value))}{',' if len(value) == 1 and open_ == '(' else ''}{close}"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(short(value)) if isinstance(value, str) else short(repr(value))


def few(words: Iterable[str], most: int = MOST_SHOWN) -> str:
    """The first words in a row, and that there are more."""
    words = list(words)
    return ", ".join([*words[:most], *(["..."] if len(words) > most else [])])


def short(text: str) -> str:
    """A text on one line, with what is too long left out of its middle."""
    text = " ".join(text.split())
    half = _LONGEST_TEXT // 2
    return text if len(text) <= _LONGEST_TEXT else f"{text[:half]}...{text[-half:]}"
