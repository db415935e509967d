"""Tap patterns and Jacobian sites against the names that the built model really has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gradlab.config.problems import Problem
from gradlab.config.yaml.nodes import Setting
from gradlab.errors import did_you_mean, shortlist
from gradlab.jacobians.options import DepthGrowth, JacobianSlice
from gradlab.taps.rule import Tap

_OF_PARAMETERS = ("weight", "weight_grad", "update")

Find = Callable[[Sequence[Any]], Setting]
"""From a path of keys to the setting there."""


def pattern_problems(settings: Mapping[str, Any], sites: list[str], parameters: list[str], find: Find) -> list[Problem]:
    """Every pattern that matches nothing, every tap that chooses nothing, every Jacobian site that does not exist.

    Args:
        settings: those of an experiment, by name; what is left out watches nothing.
        sites: the names of the model's tensors.
        parameters: the names of its parameters.
        find: from a path of keys to the setting there.
    """
    problems: list[Problem] = []
    for index, tap in enumerate(settings.get("taps") or ()):
        problems += _tap(tap, index, sites, parameters, find)
    for index, jacobian in enumerate(settings.get("jacobians", ())):
        problems += _ends(jacobian, ("jacobians", index), sites, [*sites, *parameters], find)
    for index, growth in enumerate(settings.get("depth_growth", ())):
        problems += _ends(growth, ("depth_growth", index), sites, sites, find)
        problems += _unmatched(growth.at, ("depth_growth", index, "at"), sites, "tensor", find)
    return problems


def _tap(tap: Tap, index: int, sites: list[str], parameters: list[str], find: Find) -> Iterator[Problem]:
    """The patterns of one tap."""
    from gradlab.sites.patterns import chooser  # with torch

    groups = {q: parameters if parameters and q in _OF_PARAMETERS else sites for q in tap.quantities}
    names = [*dict.fromkeys(name for group in groups.values() for name in group)]
    kind = "parameter" if parameters and all(q in _OF_PARAMETERS for q in groups) else "tensor"
    place = ("taps", index, "at")
    unmatched = list(_unmatched(tap.at, place, names, kind, find))
    yield from unmatched
    chosen = chooser(tap.patterns)
    for quantity, group in groups.items():
        if not unmatched and not any(map(chosen, group)):
            message = f"taps.{index} watches {quantity}, but its patterns together choose no tensor that has one."
            yield Problem(find(place).position, message)


def _unmatched(
    at: str | Sequence[str], place: tuple[Any, ...], names: list[str], kind: str, find: Find
) -> Iterator[Problem]:
    """The patterns at one place that match no name; of an exclusion, `!head`, what it excludes must match one too."""
    from gradlab.sites.patterns import match

    for number, pattern in enumerate((at,) if isinstance(at, str) else at):
        if not any(match(pattern.removeprefix("!"), name) for name in names):
            keys = place if isinstance(at, str) else (*place, number)
            yield Problem(find(keys).position, no_match(pattern, names, kind))


def _ends(
    spec: JacobianSlice | DepthGrowth, place: tuple[Any, ...], of: list[str], wrt: list[str], find: Find
) -> Iterator[Problem]:
    """The two sites of a Jacobian."""
    from gradlab.sites.patterns import is_wild

    for key, names in (("of", of), ("wrt", wrt)):
        site = getattr(spec, key)
        if site not in names:
            what = "is one site, not a pattern" if is_wild(site) else f"is one site, and the model has no {site!r}"
            near = did_you_mean(site, names, most=1) or f" The model has: {shortlist(names)}."
            name = ".".join(map(str, (*place, key)))
            yield Problem(find((*place, key)).position, f"{name} {what}.{near}")


def no_match(pattern: str, names: Sequence[str], kind: str) -> str:
    """The sentence for a pattern that matches none of the names, with the nearest name or pattern."""
    from gradlab.sites.patterns import is_wild

    bare = pattern.removeprefix("!")
    patterns = dict.fromkeys(wider for name in names for wider in _wider(name))
    if f"{bare}.*" in patterns:
        near = f" Did you mean {f'{bare}.*'!r}?"
    else:
        near = did_you_mean(bare, [*names, *patterns] if is_wild(bare) else names, most=1)
    return f"no {kind} matches {pattern!r}.{near or f' The model has: {shortlist(names)}.'}"


def _wider(name: str) -> list[str]:
    """Patterns that people write for a name: `a.*` and `a.b.*` of `a.b.c`, `*/relu` of `a.b/relu`."""
    parts = name.split(".")
    branches = [".".join(parts[:count]) + ".*" for count in range(1, len(parts))]
    return [*branches, f"*/{name.rpartition('/')[2]}"] if "/" in name else branches
