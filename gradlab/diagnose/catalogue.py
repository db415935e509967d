"""All rules that there are: gradlab's, those of installed packages, those made in this process.

Belongs here: finding rules by code or name. Does not: what a rule is (`registry`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

from gradlab.diagnose import rules as builtin
from gradlab.diagnose.registry import Rule, registered
from gradlab.errors import UsageError, did_you_mean, warn

ENTRY_POINTS = "gradlab.rules"
"""The group of entry points by which a package brings rules: each names a module that makes them when imported."""

FAMILIES = builtin.__all__
"""The files of gradlab's own rules."""


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
    """The codes that patterns name: a code, a beginning of codes (`GL3`), or the name of a rule.

    Raises:
        UsageError: one names no rule; the message has the near ones.
    """
    found: set[str] = set()
    for pattern in patterns:
        ones = {code for code, one in rules.items() if pattern and (code.startswith(pattern) or one.name == pattern)}
        if not ones:
            near = did_you_mean(pattern, [*rules, *(one.name for one in rules.values())])
            raise UsageError(f"no rule has the code or name {pattern!r}.{near} `gradlab rules` lists all.")
        found |= ones
    return found
