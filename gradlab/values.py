"""Value objects: what people hold compares, hashes, prints and travels by what is in it, and cannot be written to.

Belongs here: how arrays and mappings in the fields of a frozen dataclass are protected, compared and shown. Does not:
what the fields mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NoReturn, Self

import numpy as np

ABSENT = np.uint32(0x7FC0_0ABE).view(np.float32)
"""Stands for "no value on this step" in a series: a NaN by its own bit pattern, so that a NaN that was really seen
differs from a site that did not run. (R tells its missing numbers from NaN in the same way.)"""
_MOST_SHOWN, _LONGEST_TEXT = 3, 80


def is_absent(values: np.ndarray) -> np.ndarray:
    """[n] bool: where a float32 array holds `ABSENT`."""
    return np.asarray(np.ascontiguousarray(values, np.float32).view(np.uint32) == ABSENT.view(np.uint32))


class ReadOnlyDict(dict[Any, Any]):
    """A dict that cannot be written to. (A `MappingProxyType` cannot be pickled, nor turned into JSON by `json`.)"""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this mapping cannot be written to, others hold it too: dict(...) makes a copy that can be.")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(key(self))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[dict[Any, Any]]]:
        return type(self), (dict(self),)


class Value:
    """What a frozen dataclass with arrays and mappings is given: equality, hash, one-line repr, copy and pickle.

    Two are equal where their fields are; NaN equals NaN, and `ABSENT` only itself. Made with
    `@dataclass(frozen=True, eq=False, repr=False)`; `__post_init__` calls `protect`. A copy is the object itself, as of
    a tuple of numbers; a pickle is made anew by the constructor, as protected as it was.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return _fields_key(self) == _fields_key(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(_fields_key(self))

    def __repr__(self) -> str:
        shown = (f"{name}={abridged(value)}" for name, value in told_fields(self))
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


def protect(value: object) -> None:
    """Make the arrays and mappings in the fields of a frozen dataclass read-only, for its `__post_init__`."""
    for name, content in _fields(value):
        if isinstance(content, np.ndarray):
            object.__setattr__(value, name, read_only(content))
        elif isinstance(content, Mapping):
            object.__setattr__(value, name, ReadOnlyDict(content))


def read_only(array: np.ndarray) -> np.ndarray:
    """The array, or a view of it that refuses to be written to."""
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def key(value: Any) -> Hashable:
    """A hashable stand-in that is equal for equal values; NaN is equal to NaN, and `ABSENT` only to itself."""
    if isinstance(value, np.ndarray):
        return _array_key(value)
    if isinstance(value, dict):
        return frozenset((name, key(content)) for name, content in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(key, value))
    if isinstance(value, float) and math.isnan(value):
        return _NAN
    return value


_NAN = ("NaN",)


def _array_key(array: np.ndarray) -> Hashable:
    if array.dtype.kind in "fc":
        missing = np.isnan(array)
        absent = is_absent(array) if array.dtype == np.float32 else None
        array = array + array.dtype.type(0)  # a copy, in which -0 is 0
        array[missing] = np.nan
        if absent is not None:
            array[absent] = ABSENT
    return array.shape, array.dtype.str, array.tobytes()


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]


def _fields_key(value: object) -> Hashable:
    return tuple(key(content) for _, content in _fields(value))


# One line for people.


def told_fields(value: Any) -> Iterable[tuple[str, Any]]:
    """The fields of a dataclass that say something: those that differ from what they are where left out."""
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or key(default) != key(content):
            yield field.name, content


def abridged(value: Any) -> str:
    """A value in a few words: the first of many numbers, the beginning of a long text; never more than a line."""
    if isinstance(value, np.ndarray):
        size = " x ".join(map(str, value.shape))
        numbers = ", ".join(number(one) for one in value.flat[:_MOST_SHOWN])
        return f"<{size} {value.dtype}: {numbers}{', ...' if value.size > _MOST_SHOWN else ''}>"
    if isinstance(value, Mapping):
        return "{" + few(f"{name!r}: {abridged(content)}" for name, content in value.items()) + "}"
    if isinstance(value, list | tuple):
        open_, close = "[]" if isinstance(value, list) else "()"
        return f"{open_}{few(map(abridged, value))}{',' if len(value) == 1 and open_ == '(' else ''}{close}"
    if isinstance(value, float | np.floating):
        return number(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return repr(short(value) if isinstance(value, str) else value)


def few(words: Iterable[str], most: int = _MOST_SHOWN) -> str:
    """The first words in a row, and that there are more."""
    words = list(words)
    return ", ".join([*words[:most], *(["..."] if len(words) > most else [])])


def short(text: str) -> str:
    """A text on one line, with what is too long left out of its middle."""
    text = " ".join(text.split())
    half = _LONGEST_TEXT // 2
    return text if len(text) <= _LONGEST_TEXT else f"{text[:half]}...{text[-half:]}"


def number(value: Any) -> str:
    """A number with four digits; `absent` for `ABSENT`."""
    if isinstance(value, np.float32) and bool(is_absent(np.array([value]))[0]):
        return "absent"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
