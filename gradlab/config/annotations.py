"""Which rule a type annotation means.

An annotation that no YAML value can be held against, such as a Tensor, a Module or a TypeVar, allows anything; as one
member of a union it allows nothing, since YAML cannot write such a value.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

from gradlab.config.limits import Fields
from gradlab.config.records import Record
from gradlab.config.rules import Anything, Choice, Either, Limited, Rule, Several, Single, Table

_SINGLE: dict[Any, Rule] = {
    bool: Single((bool,), "true or false", "boolean"),
    int: Single((int,), "a whole number", "integer"),
    float: Single((float, int), "a number", "number"),
    str: Single((str,), "text", "string"),
    Path: Single((str,), "text (a path)", "string", make=Path),
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
)
_TABLES = (collections.abc.Mapping, collections.abc.MutableMapping, dict)


def rule_of(annotation: Any) -> Rule:
    """The rule of an annotation."""
    try:
        return _rule_of(annotation)
    except TypeError:  # unhashable, as Annotated with a list in it
        return Anything()


@lru_cache(maxsize=1024)
def _rule_of(annotation: Any) -> Rule:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _SINGLE:
        return _SINGLE[annotation]
    if origin is Annotated:
        return _limited(arguments)
    if origin is Literal:
        return Choice(arguments)
    if origin in (Union, types.UnionType):
        return _either(arguments)
    if origin in _LISTS or annotation in _LISTS:
        return _several(origin or annotation, arguments)
    if origin in _TABLES or annotation in _TABLES:
        return Table(rule_of(arguments[1]) if len(arguments) == 2 else Anything())
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Record(annotation)
    if isinstance(annotation, NewType):
        return rule_of(annotation.__supertype__)
    if hasattr(annotation, "__value__"):  # type X = ...
        return rule_of(annotation.__value__)
    return Anything()


def _limited(arguments: tuple[Any, ...]) -> Rule:
    rule = rule_of(arguments[0])
    for limit in arguments[1:]:
        if isinstance(limit, Fields) and isinstance(rule, Record):
            rule = Record(rule.cls, limit.limits)
        elif hasattr(limit, "allows"):
            rule = Limited(rule, limit)
    return rule


def _either(members: tuple[Any, ...]) -> Rule:
    """The members that YAML can write; literals of several members become one choice."""
    rules = [rule_of(member) for member in members]
    if any(member is Any or member is object for member in members):
        return Anything()
    known = [rule for rule in rules if not isinstance(rule, Anything)]
    words = tuple(word for rule in known if isinstance(rule, Choice) for word in rule.words)
    rest = [rule for rule in known if not isinstance(rule, Choice)]
    options = [*([Choice(words)] if words else []), *rest]
    number = _SINGLE[float]
    if number in options:
        options = [option for option in options if option != _SINGLE[int]]
    if not options:
        return Anything()
    return options[0] if len(options) == 1 else Either(tuple(options))


def _several(origin: Any, arguments: tuple[Any, ...]) -> Rule:
    make = list if origin in (list, collections.abc.MutableSequence) else tuple
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return Several(tuple(map(rule_of, arguments)), fixed=True)
    return Several((rule_of(arguments[0]) if arguments else Anything(),), make)
