"""The findings of one run together: the newest state of each, causes first, each with its symptoms.

Belongs here: which of them a reader sees, and in which order. Does not: which finding explains which
(`diagnose.ranking`), and how they are printed (`summary`) or drawn (`board`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gradlab.finding import SEVERITIES, Finding

_CERTAINTIES = ("exact", "scale-free", "own history")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A finding that no other explains, and those that it does."""

    finding: Finding
    symptoms: tuple[Finding, ...] = ()
    """What follows from it."""


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


def latest(states: Iterable[Finding]) -> list[Finding]:
    """The newest state of each finding, in the order in which they first came.

    A later state has the same code, key and first step. Two findings without a code are one where they say the same.
    """
    return list({identity(one): one for one in states}.values())


def identity(finding: Finding) -> tuple[object, ...]:
    """What all states of one finding have in common."""
    return finding.code, finding.key, finding.first_step, "" if finding.code else (finding.name, finding.message)


def is_repeated(before: Finding, now: Finding) -> bool:
    """Whether a state says no more than until when: such a one comes when a finding has ended, and at a run's end."""
    return replace(before, last_step=now.last_step) == now


def causes(findings: Sequence[Finding]) -> list[Cause]:
    """The roots in the order of `ranked`, each with its symptoms; a symptom whose cause is no root is a root itself."""
    in_order = ranked(findings)
    codes = {one.code for one in in_order if one.explained_by is None}
    roots = [one for one in in_order if one.explained_by not in codes]
    told: set[str] = set()
    found = []
    for root in roots:
        is_first = bool(root.code) and root.explained_by is None and root.code not in told
        told.add(root.code)
        found.append(
            Cause(
                finding=root,
                symptoms=tuple(one for one in in_order if is_first and one.explained_by == root.code),
            )
        )
    return found


def has_ended(finding: Finding, num_steps: int) -> bool:
    """Whether it was not seen any more some time before the last of so many steps."""
    last = finding.first_step if finding.last_step is None else finding.last_step
    return last + max(20, num_steps // 10) < num_steps


def when(finding: Finding, num_steps: int) -> str:
    """`since step 3`, or `steps 3 to 40` where it had ended before the last of so many steps."""
    first, last = finding.first_step, finding.last_step
    if not has_ended(finding, num_steps):
        return f"since step {first}"
    return f"at step {first}" if last in (None, first) else f"steps {first} to {last}"
