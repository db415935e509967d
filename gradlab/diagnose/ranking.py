"""Which findings are causes and which are symptoms of others, and in which order people read them.

Belongs here: the relation between findings of one run. Does not: which rule may explain which (each rule says so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradlab.diagnose.registry import Rule
from gradlab.finding import SEVERITIES, Finding

LATEST = 20
"""A cause may be noticed so many steps after its symptom."""
_CERTAINTIES = ("exact", "scale-free", "own history")


def explained(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> list[Finding]:
    """The findings, each with `explained_by`: the code of the cause at the root, None where it is one itself.

    A cause has begun no later than its symptom, within 20 steps: a look may show the symptom first.
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
    ]


def _root(place: int, causes: Mapping[int, Sequence[int]], findings: Sequence[Finding]) -> int:
    """The cause behind all causes; of several the first in the order of `rank`. Circles are left where they close."""
    seen = {place}
    while True:
        left = [other for other in causes[place] if other not in seen]
        if not left:
            return place
        place = min(left, key=lambda other: rank(findings[other]))
        seen.add(place)


def rank(finding: Finding) -> tuple[object, ...]:
    """The place of a finding among roots: what is no more than news last; then certainty, severity, onset, extent."""
    severity = SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else 1
    certainty = _CERTAINTIES.index(finding.certainty) if finding.certainty in _CERTAINTIES else len(_CERTAINTIES)
    return severity == 0, certainty, -severity, finding.first_step, -len(finding.sites), finding.code


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Roots first, in the order in which to look at them; symptoms after all roots, in the order of their causes."""
    roots = sorted((one for one in findings if one.explained_by is None), key=rank)
    order = {one.code: place for place, one in reversed(list(enumerate(roots)))}
    symptoms = sorted(
        (one for one in findings if one.explained_by is not None),
        key=lambda one: (order.get(one.explained_by or "", len(roots)), rank(one)),
    )
    return [*roots, *symptoms]
