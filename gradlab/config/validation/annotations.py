"""Which rule a type annotation means, and which keys a dataclass has by the annotations of its fields.

Every annotation is one of three: it has a rule, by which a value is checked and made what the annotation says; it
allows anything, where it says nothing (`Any`, a TypeVar without a bound, a name that only type checkers can read); or
no file can write its values (a Tensor, a Module), and then a value is refused by that name. In a union the members
that can be written count.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import inspect
import numbers
import os
import sys
import types
import typing
from collections.abc import Mapping as Map
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin

from gradlab.config.validation.converted import Imported, Member, NamedFields, OnlyNull, Parsed, Unwritable
from gradlab.config.validation.keys import MISSING, Key
from gradlab.config.validation.limits import Fields
from gradlab.config.validation.records import Limits, Record
from gradlab.config.validation.rules import Anything, Choice, Either, Limited, Rule, Several, Single, Table
from gradlab.config.validation.type_hints import class_hints

_SINGLE: dict[Any, Rule] = {
    bool: Single((bool,), "true or false", "boolean"),
    int: Single((int,), "a whole number", "integer"),
    float: Single((float, int), "a number", "number"),
    str: Single((str,), "text", "string"),
    Path: Single((str,), "text (a path)", "string", make=Path),
    os.PathLike: Single((str,), "text (a path)", "string", make=Path),
    numbers.Number: Single((float, int), "a number", "number"),
    numbers.Real: Single((float, int), "a number", "number"),
    numbers.Integral: Single((int,), "a whole number", "integer"),
    decimal.Decimal: Parsed("a decimal number", decimal.Decimal, (str, int, float)),
    datetime.date: Parsed("a date such as 2026-11-28", datetime.date.fromisoformat),
    datetime.datetime: Parsed("a time such as 2026-11-28T01:14", datetime.datetime.fromisoformat),
    datetime.time: Parsed("a time of day such as 01:14", datetime.time.fromisoformat),
    None: Single((type(None),), "null", "null"),
    type(None): Single((type(None),), "null", "null"),
}
_LISTS = (
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Set,
    collections.abc.MutableSet,
    collections.deque,
)
_MAKERS: dict[Any, Any] = {
    list: list,
    collections.abc.MutableSequence: list,
    set: set,
    collections.abc.MutableSet: set,
    frozenset: frozenset,
    collections.abc.Set: frozenset,
    collections.deque: collections.deque,
}
_WRAPPERS = (typing.Final, typing.ClassVar, typing.Required, typing.NotRequired)
_TABLES = (collections.abc.Mapping, collections.abc.MutableMapping, dict)


def rule_of(annotation: Any) -> Rule:
    """The rule of an annotation."""
    try:
        return _rule_of(annotation)
    except TypeError:  # unhashable, as Annotated with a list in it
        return _limited(get_args(annotation)) if get_origin(annotation) is Annotated else Anything()


@lru_cache(maxsize=256)
def keys_of(cls: type, limits: Limits = ()) -> Map[str, Key]:
    """The fields of a dataclass, in order, as keys with rules and defaults."""
    hints = class_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    known: dict[str, Key] = {}
    # The signature has what a mapping of fields lacks: `InitVar`, and whatever a constructor of the user's own takes.
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        field = fields.get(name)
        if field is not None and not _is_setting(field):
            continue
        hint = hints.get(name, Any if parameter.annotation is parameter.empty else parameter.annotation)
        default = MISSING if parameter.default is parameter.empty else parameter.default
        known[name] = Key(
            rule_of(Any if isinstance(hint, str) else hint), default if field is None else _default(field)
        )
    return known | {name: Key(Limited(known[name].rule, limit), known[name].default) for name, limit in limits}


def _is_setting(field: dataclasses.Field[Any]) -> bool:
    """Whether a field can be set in a file: not where it takes something that only Python can make."""
    return field.init and not field.metadata.get("python_only", False)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


@lru_cache(maxsize=1024)
def _rule_of(annotation: Any) -> Rule:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _SINGLE:
        return _SINGLE[annotation]
    if origin is Annotated:
        return _limited(arguments)
    if annotation is Any or annotation is object or annotation is inspect.Parameter.empty:
        return Anything()
    if origin is Literal:
        return _literal(arguments)
    if origin in _WRAPPERS or isinstance(annotation, dataclasses.InitVar):
        return rule_of(arguments[0] if arguments else annotation.type)
    if origin in (Union, types.UnionType):
        return _either(arguments)
    if origin in _LISTS or annotation in _LISTS:
        return _several(origin or annotation, arguments)
    if origin in _TABLES or annotation in _TABLES:
        key, value = map(rule_of, arguments) if len(arguments) == 2 else (Anything(), Anything())
        return Table(value, key=key)
    if origin is type or annotation is type:
        base = arguments[0] if arguments and isinstance(arguments[0], type) else object
        return Imported(base)
    if origin is collections.abc.Callable or annotation is collections.abc.Callable or annotation is typing.Callable:
        return Imported()
    if isinstance(annotation, TypeVar):
        return _either(annotation.__constraints__ or (annotation.__bound__ or Any,))
    if isinstance(annotation, type):
        return _of_class(annotation)
    if isinstance(annotation, NewType):
        return rule_of(annotation.__supertype__)
    if hasattr(annotation, "__value__"):  # type X = ...
        return rule_of(annotation.__value__)
    if hasattr(origin, "__value__"):  # type X[T] = ..., of an argument
        given = dict(zip(origin.__type_params__, arguments, strict=False))
        return rule_of(_substituted(origin.__value__, given))
    if isinstance(origin, type):  # a generic class of the user's own
        return rule_of(origin)
    return Anything()


def _substituted(annotation: Any, given: dict[Any, Any]) -> Any:
    """A generic alias with its type parameters filled in."""
    if annotation in given:
        return given[annotation]
    parameters = getattr(annotation, "__parameters__", ())
    return annotation[tuple(given.get(one, Any) for one in parameters)] if parameters else annotation


def _of_class(cls: type) -> Rule:
    """The rule of a class that is none of the builtin ones."""
    if issubclass(cls, enum.Enum):
        return Member.of(tuple(cls.__members__.values()))
    if dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__"):
        return Record(cls, keys_of)
    if typing.is_typeddict(cls):
        needed = cls.__required_keys__  # type: ignore[attr-defined]
        hints = class_hints(cls)
        keys = {
            name: Key(rule_of(hint), MISSING if _is_needed(name, hint, needed) else None)
            for name, hint in hints.items()
        }
        return NamedFields(cls.__name__, tuple(keys.items()), dict)
    if issubclass(cls, tuple) and hasattr(cls, "_field_defaults"):
        hints, defaults = class_hints(cls), cls._field_defaults
        names = cls._fields  # type: ignore[attr-defined]
        named = tuple((name, Key(rule_of(hints.get(name, Any)), defaults.get(name, MISSING))) for name in names)
        return NamedFields(cls.__name__, named, cls, ordered=True)
    if cls is datetime.timedelta:
        units = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
        mapping = NamedFields("timedelta", tuple((unit, Key(_SINGLE[float], 0)) for unit in units), cls)
        return Either((Single((int, float), "a number of seconds", "number", make=_seconds), mapping))
    if (torch := sys.modules.get("torch")) is not None:
        if cls is torch.dtype:
            return Parsed("a dtype such as float32", _dtype)
        if cls is torch.device:
            return Parsed("a device such as cpu or cuda:0", torch.device)
    if cls.__module__ in ("collections.abc", "typing"):  # what can be hashed, has a length, ...
        return Anything()
    return Unwritable(cls.__name__)


def _is_needed(name: str, hint: Any, needed: frozenset[str]) -> bool:
    """Whether a typed dictionary must have a key. Where annotations are texts, its class cannot read `NotRequired`."""
    origin = get_origin(hint)
    return origin is typing.Required or (name in needed and origin is not typing.NotRequired)


def _seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


def _dtype(text: str) -> Any:
    torch = sys.modules["torch"]
    found = getattr(torch, text.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise TypeError
    return found


def _literal(words: tuple[Any, ...]) -> Rule:
    """One of a few words; members of enums by their names and values."""
    members = tuple(word for word in words if isinstance(word, enum.Enum))
    plain = tuple(word for word in words if not isinstance(word, enum.Enum))
    if None in plain:
        options = [_literal(tuple(word for word in words if word is not None)), _SINGLE[None]]
        return Either(tuple(options)) if len(words) > 1 else _SINGLE[None]
    options = [*([Choice(plain)] if plain else []), *([Member.of(members)] if members else [])]
    return options[0] if len(options) == 1 else Either(tuple(options))


def _limited(arguments: tuple[Any, ...]) -> Rule:
    rule = rule_of(arguments[0])
    for limit in arguments[1:]:
        if isinstance(limit, Fields) and isinstance(rule, Record):
            rule = dataclasses.replace(rule, limits=limit.limits)
        elif hasattr(limit, "allows"):
            rule = Limited(rule, limit)
    return rule


def _either(members: tuple[Any, ...]) -> Rule:
    """The members that YAML can write; literals of several members become one choice."""
    rules = [rule_of(member) for member in members]
    if any(member is Any or member is object for member in members):
        return Anything()
    rules = [inner for rule in rules for inner in (rule.options if isinstance(rule, Either) else (rule,))]
    refused = tuple(rule.name for rule in rules if isinstance(rule, Unwritable))
    known = [rule for rule in rules if not isinstance(rule, Anything | Unwritable)]
    if refused and all(rule == _SINGLE[None] for rule in known):
        return OnlyNull(refused) if known else Unwritable(" or ".join(refused))
    words = tuple(word for rule in known if type(rule) is Choice for word in rule.words)
    rest = [rule for rule in dict.fromkeys(known) if type(rule) is not Choice]
    rest.sort(key=lambda rule: rule == _SINGLE[str])  # what more than a text can be is tried first
    options = [*([Choice(words)] if words else []), *rest]
    number = _SINGLE[float]
    if number in options:
        options = [option for option in options if option != _SINGLE[int]]
    if not options:
        return Anything()
    return options[0] if len(options) == 1 else Either(tuple(options))


def _several(origin: Any, arguments: tuple[Any, ...]) -> Rule:
    make = _MAKERS.get(origin, tuple)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        arguments = () if arguments == ((),) else arguments
        return Several(tuple(map(rule_of, arguments)), fixed=True)
    return Several((rule_of(arguments[0]) if arguments else Anything(),), make)
