"""Checking a sweep: every value of every axis must obey the rule of the setting that it is for.

Done by setting each value in turn, as an override would, and checking the part of the experiment that it changes; so a
sweep value gets the message that the same value would get in the file. Does not: expanding a sweep into trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradlab.config.overrides import path_of, with_value
from gradlab.config.problems import Position, Problem
from gradlab.config.yaml.nodes import Entry, Listing, Mapping, Node, Setting

MOST_VALUES = 1000
"""The most values of one axis."""

CheckPart = Callable[[Mapping, str, list[Problem]], object]
"""Checks one top-level setting of an experiment: the root, the setting's name, where problems go."""


def check_axes(root: Mapping, over: Setting, check_part: CheckPart, problems: list[Problem]) -> None:
    """Add what is wrong with the values of `sweep.over`."""
    for entry in over.node.entries if isinstance(over.node, Mapping) else ():
        path = path_of(entry.key.text)
        if path[0] in ("sweep", "name"):
            problems.append(Problem(entry.key.position, f"{path[0]!r} is the same for all runs of a sweep."))
        elif problem := _too_many(entry):
            problems.append(problem)
        else:
            problems += _axis_problems(root, entry, check_part)


def _axis_problems(root: Mapping, entry: Entry, check_part: CheckPart) -> list[Problem]:
    """What each value of an axis adds to the problems that the experiment has without it."""
    path = path_of(entry.key.text)
    known: list[Problem] = []
    check_part(root, path[0], known)
    found: list[Problem] = []
    for value in _values(entry.value):
        changed = with_value(root, path, entry.key.position, value)
        if isinstance(changed, Problem):
            return [changed]
        check_part(changed, path[0], found)
    own = set(_positions(entry))
    return [
        problem if problem.position in own else Problem(entry.key.position, problem.message)
        for problem in found
        if problem not in known
    ]


def _positions(node: Node | Entry) -> Iterator[Position]:
    """Every place in a part of the file; what a value breaks elsewhere is shown at the axis."""
    if isinstance(node, Entry):
        yield node.key.position
        yield from _positions(node.value)
    else:
        yield node.position
        inner = node.entries if isinstance(node, Mapping) else node.items if isinstance(node, Listing) else ()
        for part in inner:
            yield from _positions(part)


def _too_many(entry: Entry) -> Problem | None:
    if isinstance(entry.value, Listing) and len(entry.value.items) > MOST_VALUES:
        return Problem(entry.key.position, f"{entry.key.text} has more than {MOST_VALUES:,} values.")
    return None


def _values(axis: Node) -> Iterator[Node]:
    """The values of a list, or both ends of a range."""
    if isinstance(axis, Listing):
        yield from axis.items
    elif isinstance(axis, Mapping) and (log := axis.entry("log")) and isinstance(log.value, Listing):
        yield from log.value.items
