"""Which findings are causes and which are symptoms of others.

Belongs here: the relation between findings of one run. Does not: which rule may explain which (each rule says so), and
in which order people read them (`gradlab.findings`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradlab.diagnose.registry import Rule
from gradlab.finding import Finding
from gradlab.findings import rank, ranked

__all__ = ["LATEST", "explained", "rank", "ranked"]

LATEST = 20
"""A cause may be noticed so many steps after its symptom."""


def explained(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> list[Finding]:
    """The findings, each with `explained_by`: the code of the cause at the root, None where it is one itself.

    A cause has begun no later than its symptom, within 20 steps: a look may show the symptom first. Of two that may
    each be the cause of the other the one that has begun first is.
    """
    causes = {place: _causes(place, findings, rules) for place in range(len(findings))}
    result = []
    for place, one in enumerate(findings):
        root = _root(place, causes, findings)
        code = findings[root].code if root != place else None
        result.append(one if one.explained_by == code else replace(one, explained_by=code))
    return result


def _causes(place: int, findings: Sequence[Finding], rules: Mapping[str, Rule]) -> list[int]:
    one = findings[place]
    return [
        other
        for other, cause in enumerate(findings)
        if other != place
        and cause.code in rules
        and one.code
        and cause.severity != "info"
        and rules[cause.code].is_cause_of(one.code)
        and cause.first_step <= one.first_step + LATEST
        and not _is_rather_cause(one, cause, rules)
    ]


def _is_rather_cause(one: Finding, other: Finding, rules: Mapping[str, Rule]) -> bool:
    """Whether a finding may be the cause of another that may be its own, and has begun before it."""
    is_mutual = one.code in rules and one.severity != "info" and rules[one.code].is_cause_of(other.code)
    return is_mutual and (one.first_step, rank(one)) < (other.first_step, rank(other))


def _root(place: int, causes: Mapping[int, Sequence[int]], findings: Sequence[Finding]) -> int:
    """The cause behind all causes; of several the first in the order of `rank`. Circles are left where they close."""
    seen = {place}
    while True:
        left = [other for other in causes[place] if other not in seen]
        if not left:
            return place
        place = min(left, key=lambda other: rank(findings[other]))
        seen.add(place)
