"""The arguments of a class as keys with rules, read from its signature."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, get_type_hints

from gradlab.config.validation.annotations import rule_of
from gradlab.config.validation.converted import OnlyNull, Unwritable
from gradlab.config.validation.records import MISSING, Key, Keys
from gradlab.config.validation.types import Either, Rule


def arguments_of(cls: type, name: str, *, skip: int = 0, refused: Mapping[str, str] | None = None) -> Keys:
    """The arguments of a class's constructor.

    Args:
        cls: any class. One without a readable signature takes anything.
        name: what messages call it.
        skip: how many of its first arguments are filled in by gradlab.
        refused: arguments that exist but are not for an experiment file, with the sentence that says what to use.
    """
    try:
        parameters = list(inspect.signature(cls).parameters.values())[skip:]
    except (ValueError, TypeError):
        return Keys({}, "", "", refused or {}, open=True)
    hints = _hints(cls)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Keys(
        {p.name: Key(_rule(hints.get(p.name, Any), p.default), _default(p.default)) for p in named},
        f"{name} takes no argument",
        f"{name} needs the argument" + ("s" if sum(p.default is p.empty for p in named) > 1 else ""),
        refused or {},
        open=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _rule(annotation: Any, default: Any) -> Rule:
    """The rule of an annotation; a default of None allows null even where the annotation forgets to."""
    rule = rule_of(annotation)
    nothing = rule_of(None)
    if default is not None or rule.schema() == {} or rule == nothing or isinstance(rule, OnlyNull):
        return rule
    if isinstance(rule, Unwritable):
        return OnlyNull((rule.name,))
    if isinstance(rule, Either) and nothing in rule.options:
        return rule
    return Either((*(rule.options if isinstance(rule, Either) else (rule,)), nothing))


def _default(default: Any) -> Any:
    return MISSING if default is inspect.Parameter.empty else default


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of the constructor's arguments; those that cannot be evaluated are left out."""
    makers = (inspect.unwrap(getattr(cls, name)) for name in ("__init__", "__new__"))
    make = next((maker for maker in makers if inspect.isfunction(maker)), None)
    if make is None:
        return {}
    try:
        return get_type_hints(make, include_extras=True)
    except Exception:  # a name that exists only for type checkers: keep the others
        names = vars(sys.modules.get(make.__module__, sys))
        return {name: _evaluated(text, names) for name, text in make.__annotations__.items()}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)  # an annotation in a module that has just been imported and run
    except Exception:
        return Any
