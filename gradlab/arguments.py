"""Checks the arguments of public functions and classes, and says in one sentence what is wrong with one.

A function has a table of its arguments beside it, argument -> `Kind`, and hands both over to `check_arguments`; a
frozen dataclass of options to `check_fields`. Belongs here: kinds of arguments, the sentence for a wrong value, and the
one for a wrong call. Does not: the tables, kinds that are objects of torch (`torch_arguments`), or what makes no sense
together. Imports no numpy, as all that the options of an experiment need.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gradlab.errors import ArgumentError, GradlabError, did_you_mean
from gradlab.values import ReadOnlyDict, abridged

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=type)


class _Refused(ValueError):
    """A value that an argument cannot be, where in it, and what to do instead."""

    def __init__(self, value: Any, words: str, fix: str = "", at: str = "") -> None:
        super().__init__(words)
        self.value, self.words, self.fix, self.at = value, words, fix, at


@dataclass(frozen=True)
class Kind:
    """What an argument may be."""

    words: str
    """What it may be, in words that go on after `every must be`."""
    keep: Callable[[Any], Any]
    """From a value to the value that is kept; raises TypeError or ValueError for one that is refused."""
    fix: Callable[[Any], str] = lambda value: ""
    """From a value that is refused to a sentence that says what to give instead, or ""."""

    def accept(self, value: Any) -> Any:
        """The value as it is kept."""
        try:
            return self.keep(value)
        except _Refused as refused:
            if refused.at:
                raise
        except (TypeError, ValueError, OverflowError):
            pass
        raise _Refused(value, self.words, self.fix(value)) from None


Table = Mapping[str, Kind]
"""Argument -> what it may be."""


def check_arguments(
    who: str, table: Table, given: Mapping[str, Any], error: type[GradlabError] = ArgumentError
) -> dict[str, Any]:
    """The arguments as they are kept, those of the table; others are left as they are.

    Raises:
        GradlabError: of the class `error`, which names the argument, what it may be, and what was given.
    """
    kept = dict(given)
    for name in [name for name in given if name in table]:
        try:
            kept[name] = table[name].accept(given[name])
        except _Refused as refused:
            text = f"{who}: {name}{refused.at} must be {refused.words}, got {described(refused.value)}."
            wrong = error(text + (refused.fix and f" {refused.fix}"))
            wrong.field = name
            raise wrong from None
    return kept


def check_argument(who: str, name: str, kind: Kind, value: Any, error: type[GradlabError] = ArgumentError) -> Any:
    """One argument as it is kept; see `check_arguments`."""
    return check_arguments(who, {name: kind}, {name: value}, error)[name]


def check_fields(value: Any, who: str, table: Table, error: type[GradlabError] = ArgumentError) -> None:
    """Check the fields of a frozen dataclass, for its `__post_init__`, and put in the values as they are kept."""
    for name, kept in check_arguments(who, table, {name: getattr(value, name) for name in table}, error).items():
        object.__setattr__(value, name, kept)


def described(value: Any) -> str:
    """What was given, in a few words: never a whole model."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | bytes | list | tuple | dict | Path):
        return abridged(value)
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    kind = type(value).__name__
    shown = repr(value) if type(value).__module__.startswith("gradlab") else ""
    return shown or f"{'an' if kind[:1] in 'AEIOUaeiou' else 'a'} {kind}"


# Kinds.


def plain(value: Any) -> Any:
    """A number, a list of numbers or an array of numpy or torch, as Python has it."""
    return value.tolist() if hasattr(value, "tolist") else value


def _flag(value: Any) -> bool:
    if isinstance(value := plain(value), bool):
        return value
    raise TypeError


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError


def _name(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise TypeError


def _path(value: Any) -> Any:
    if isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str) and os.fspath(value):
        return value
    raise TypeError


def _function(value: Any) -> Any:
    if callable(value):
        return value
    raise TypeError


def _whole(value: Any) -> int:
    if isinstance(value := plain(value), bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value := plain(value), int | float) and not isinstance(value, bool):
        return value
    raise TypeError


FLAG = Kind("True or False", _flag)
TEXT = Kind("text", _text)
NAME = Kind("a name, as text", _name)
PATH = Kind("a path, as text or pathlib.Path", _path)
FUNCTION = Kind("a function", _function)
PATTERN = Kind("a pattern, as text", _name)
ANYTHING = Kind("anything", lambda value: value)


def whole(least: int | None = None) -> Kind:
    """A whole number, of Python, numpy or a tensor; not True or False."""

    def keep(value: Any) -> int:
        number = _whole(value)
        if least is not None and number < least:
            raise ValueError
        return number

    return Kind("a whole number" if least is None else f"a whole number from {least}", keep)


def number(words: str, allows: Callable[[float], bool]) -> Kind:
    """A number for which `allows` is true; the words say what that is."""

    def keep(value: Any) -> float:
        if not allows(_number(value)):
            raise ValueError
        return _number(value)

    return Kind(words, keep)


def one_of(*words: Any) -> Kind:
    """One of some words; `None` among them is "left out"."""
    shown = " or ".join(repr(word) for word in words if word is not None)

    def keep(value: Any) -> Any:
        if any(value is word or (isinstance(value, str) and value == word) for word in words):
            return value
        raise ValueError

    return Kind(f"{shown} or left out" if None in words else shown, keep)


def optional(kind: Kind) -> Kind:
    """Of a kind, or None."""
    return Kind(f"{kind.words}, or None", lambda value: None if value is None else kind.accept(value), kind.fix)


def either(*kinds: Kind) -> Kind:
    """Of the first of some kinds that takes the value."""

    def keep(value: Any) -> Any:
        for kind in kinds[:-1]:
            try:
                return kind.accept(value)
            except _Refused:
                continue
        return kinds[-1].accept(value)

    return Kind(" or ".join(kind.words for kind in kinds), keep)


def instance(cls: type | tuple[type, ...], words: str, fix: str = "") -> Kind:
    """An object of a class."""

    def keep(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        raise TypeError

    return Kind(words, keep, lambda value: fix)


def listed(kind: Kind, words: str, *, alone: bool = False, least: int = 0, fix: str = "") -> Kind:
    """Several of a kind, kept as a tuple, so that a caller's list can change. With `alone`, also one without a list."""

    def keep(value: Any) -> tuple[Any, ...]:
        if alone and not isinstance(value, list | tuple):
            try:
                return (kind.accept(value),)
            except _Refused:
                pass
        if not is_listed(value):
            raise TypeError
        several = tuple(plain(value))
        if len(several) < least:
            raise ValueError
        return tuple(_accept_item(kind, place, one) for place, one in enumerate(several))

    return Kind(words, keep, lambda value: fix)


def one_or_several(kind: Kind, words: str) -> Kind:
    """One of a kind or a list of them. A list of one is kept as that one, a longer list as a tuple."""
    several = listed(kind, words, alone=True, least=1)

    def keep(value: Any) -> Any:
        kept = several.accept(value)
        return kept[0] if len(kept) == 1 else kept

    return Kind(words, keep)


def mapping(kind: Kind, words: str) -> Kind:
    """A mapping from names to a kind, kept as one that cannot be written to."""

    def keep(value: Any) -> ReadOnlyDict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise TypeError
        return ReadOnlyDict({name: _accept_item(kind, name, one) for name, one in value.items()})

    return Kind(words, keep)


def _accept_item(kind: Kind, place: int | str, value: Any) -> Any:
    try:
        return kind.accept(value)
    except _Refused as refused:
        raise _Refused(refused.value, refused.words, refused.fix, f"[{place!r}]{refused.at}") from None


PATTERNS = one_or_several(PATTERN, "a pattern or a list of patterns")


def is_listed(value: Any) -> bool:
    """Whether a value is several in an order: no text, no set, no mapping."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | set | frozenset)


# Calls.


def named_options(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose wrong keywords and missing arguments are a GradlabError with near misses, and a TypeError."""
    signature = inspect.signature(function)
    who = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(_wrong_call(who, signature, args, kwargs, error)) from None
        return function(*args, **kwargs)

    return checked


def named_fields(cls: T) -> T:
    """A class whose constructor is like a function with `named_options`."""
    setattr(cls, "__init__", named_options(cls.__init__))  # type: ignore[misc]  # noqa: B010
    return cls


def _wrong_call(
    who: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: TypeError
) -> str:
    names = [name for name in signature.parameters if name != "self"]
    for name in kwargs:
        if name not in names:
            near = did_you_mean(name, names, most=1)
            return f"{who}() has no option {name!r}." + (near or f" It has: {', '.join(names)}.")
    return f"{who}(): {error}."
