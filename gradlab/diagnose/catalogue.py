"""All rules that there are: gradlab's, those of installed packages, those made in this process.

Belongs here: finding rules by code or name. Does not: what a rule is (`registry`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

from gradlab.diagnose import rules as builtin
from gradlab.diagnose.registry import Rule, registered
from gradlab.errors import UsageError, did_you_mean, warn

ENTRY_POINTS = "gradlab.rules"
"""The group of entry points by which a package brings rules: each names a module that makes them when imported."""

FAMILIES = builtin.__all__
"""The files of gradlab's own rules."""

FROM_ELSEWHERE: Mapping[str, str] = {
    "GL703": "nonfinite-origin",
    "GL704": "skipped-update",
    "GL801": "profile",
    "GL804": "out-of-memory",
}
"""Codes and names of findings that no rule makes, but the guard of gradients and the profiler. They can be ignored."""


def all_rules() -> Mapping[str, Rule]:
    """Every rule by its code, in order: gradlab's, those of installed packages, those made in this process."""
    _load_entry_points()
    return registered()


_loaded: set[str] = set()


def _load_entry_points() -> None:
    for point in () if _loaded else entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            warn(f"the rules of {point.value} were not loaded: {type(error).__name__}: {error}")
    _loaded.add(ENTRY_POINTS)


def matching(patterns: Iterable[str], rules: Mapping[str, Rule]) -> set[str]:
    """The codes that patterns name: a code, a beginning of codes (`GL3`), or a name, of a rule or from elsewhere.

    Raises:
        UsageError: one names no rule; the message has the near ones.
    """
    found: set[str] = set()
    names = {**FROM_ELSEWHERE, **{code: one.name for code, one in rules.items()}}
    for pattern in patterns:
        ones = {code for code, name in names.items() if pattern and (code.startswith(pattern) or name == pattern)}
        if not ones:
            near = did_you_mean(pattern, [*names, *names.values()])
            raise UsageError(f"no rule has the code or name {pattern!r}.{near} `gradlab rules` lists all.")
        found |= ones
    return found


def objection(name: str) -> str:
    """What is wrong with a name of rules that is read before a module of the user's has made its own; "" where nothing.

    A code whose letters no rule has yet (`MY001`) may be one of these.
    """
    rules = all_rules()
    letters = re.fullmatch(r"([A-Z]+)\d*", name)
    if letters and not any(re.match(r"[A-Z]+", code)[0] == letters[1] for code in rules):  # type: ignore[index]
        return ""
    try:
        matching([name], rules)
    except UsageError as error:
        return str(error)
    return ""
