"""The arguments of a class as keys with rules, read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from gradlab.config.validation.annotations import rule_of
from gradlab.config.validation.converted import OnlyNull, Unwritable
from gradlab.config.validation.keys import MISSING, Key, Keys
from gradlab.config.validation.rules import Either, Rule
from gradlab.config.validation.type_hints import constructor_hints


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
    hints = constructor_hints(cls)
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
