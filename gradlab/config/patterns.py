"""Tap patterns and Jacobian sites against the names that the built model really has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradlab.config.nodes import Setting
from gradlab.config.render import Problem
from gradlab.config.schema import Experiment
from gradlab.errors import did_you_mean
from gradlab.jacobians.spec import JacobianSlice
from gradlab.taps.rule import Tap

_OF_PARAMETERS = ("weight", "weight_grad", "update")

Find = Callable[[Sequence[Any]], Setting]
"""From a path of keys to the setting there."""


def pattern_problems(experiment: Experiment, sites: list[str], parameters: list[str], find: Find) -> list[Problem]:
    """Every pattern that matches nothing, every tap that chooses nothing, every Jacobian site that does not exist."""
    problems: list[Problem] = []
    for index, tap in enumerate(experiment.taps or ()):
        problems += _tap(tap, index, sites, parameters, find)
    for index, jacobian in enumerate(experiment.jacobians):
        problems += _jacobian(jacobian, index, sites, [*sites, *parameters], find)
    return problems


def _tap(tap: Tap, index: int, sites: list[str], parameters: list[str], find: Find) -> Iterator[Problem]:
    from gradlab.taps.sites import chooser, match  # with torch

    candidates = {
        quantity: parameters if parameters and quantity in _OF_PARAMETERS else sites for quantity in tap.quantities
    }
    names = [name for group in {id(group): group for group in candidates.values()}.values() for name in group]
    lost = False
    for number, pattern in enumerate(tap.patterns):
        if not any(match(pattern.removeprefix("!"), name) for name in names):
            lost = True
            place = ("taps", index, "at") if isinstance(tap.at, str) else ("taps", index, "at", number)
            kind = "parameter" if names is parameters or set(names) == set(parameters) else "tensor"
            yield Problem(find(place).position, no_match(pattern, names, kind))
    if lost:
        return
    chosen = chooser(tap.patterns)
    for quantity, group in candidates.items():
        if not any(map(chosen, group)):
            kind = "parameter" if group is parameters else "tensor"
            message = f"taps.{index} watches {quantity}, but its patterns together choose no {kind}."
            yield Problem(find(("taps", index, "at")).position, message)


def _jacobian(spec: JacobianSlice, index: int, of: list[str], wrt: list[str], find: Find) -> Iterator[Problem]:
    for key, names in (("of", of), ("wrt", wrt)):
        site = getattr(spec, key)
        if site not in names:
            message = f"jacobians.{index}.{key} is one site, and the model has no {site!r}.{near_names(site, names)}"
            yield Problem(find(("jacobians", index, key)).position, message)


def no_match(pattern: str, names: Sequence[str], kind: str) -> str:
    """The sentence for a pattern that matches none of the names."""
    return f"no {kind} matches {pattern!r}.{near_names(pattern.removeprefix('!'), names)}"


def near_names(pattern: str, names: Sequence[str]) -> str:
    """The names or whole branches nearest to a pattern; where none is near, the first few names."""
    from gradlab.taps.sites import shortlist

    branches = dict.fromkeys(f"{branch}.*" for name in names for branch in _branches(name))
    if f"{pattern}.*" in branches:
        return f" Did you mean {f'{pattern}.*'!r}?"
    near = did_you_mean(pattern, [*names, *branches] if "*" in pattern else names)
    return near or f" The model has: {shortlist(names)}."


def _branches(name: str) -> list[str]:
    """`a`, `a.b` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
