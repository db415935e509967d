"""The diagnosis of one training: asks the rules at each look, and turns what they see into findings.

Belongs here: which rules are asked when, how often in a row a case must be seen, when a finding has ended, what is
ignored. Does not: how a rule recognises its case (`rules`), or causes and symptoms (`ranking`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from gradlab.diagnose.catalogue import all_rules, matching
from gradlab.diagnose.context import Abstain, Context
from gradlab.diagnose.options import Diagnose
from gradlab.diagnose.ranking import explained
from gradlab.diagnose.registry import Evidence, Rule
from gradlab.finding import SEVERITIES, Finding
from gradlab.findings import is_repeated


@dataclass
class _Case:
    """What is remembered of one case of a rule from look to look."""

    num_seen: int = 0
    """In how many looks in a row."""
    num_missing: int = 0
    first_step: int = 0
    place: int | None = None
    """That of its finding, as long as it goes on."""


@dataclass(frozen=True)
class _Ignored:
    """Findings of some rules that are not wanted, at some sites or anywhere."""

    codes: frozenset[str]
    sites: str = "*"

    def left_of(self, code: str, evidence: Evidence) -> Evidence | None:
        """The evidence without the sites that are ignored; None where nothing is left."""
        if code not in self.codes:
            return evidence
        if self.sites == "*":
            return None
        if not evidence.sites:  # of the whole run, and so of no site
            return evidence
        sites = tuple(one for one in evidence.sites if not fnmatchcase(one, self.sites))
        return replace(evidence, sites=sites) if sites else None


class Diagnosis:
    """Turns looks into findings. A finding is said once; a later state of it (more sites, worse, its cause, its end)
    is given out again.

    Args:
        diagnose: which rules are asked.
        on_failure: called with the code of a rule that raised, and the error; it is asked no more.
    """

    def __init__(
        self, diagnose: Diagnose | None = None, on_failure: Callable[[str, Exception], None] | None = None
    ) -> None:
        diagnose = diagnose or Diagnose()
        self._all = all_rules()
        chosen = (
            matching(diagnose.select, self._all)
            if diagnose.select
            else {c for c, r in self._all.items() if not r.is_preview}
        )
        parts = [one.partition("@") for one in diagnose.ignore]
        self._ignored = [_Ignored(frozenset(matching([code], self._all)), glob or "*") for code, _, glob in parts]
        self._limits = {
            code: limit for given, limit in diagnose.limits.items() for code in matching([given], self._all)
        }
        self._rules = [self._all[code] for code in sorted(chosen & self._all.keys())]
        self._on_failure = on_failure
        self._cases: dict[tuple[str, str], _Case] = {}
        self._told: dict[int, Finding] = {}
        """By place of a finding: the state in which it was given out last."""
        self._ended: set[int] = set()
        """Places of findings that have ended at this look."""
        self.findings: list[Finding] = []
        """All so far, in the order in which they came, each in its newest state."""
        self.abstained: dict[str, str] = {}
        """By code of a rule that could not tell when it was last asked: what was missing."""

    def look(self, context: Context) -> list[Finding]:
        """What is new, or changed, after a look: what every rule for looks says now."""
        return self._ask([one for one in self._rules if one.clock != "frame"], context)

    def look_at_frame(self, context: Context) -> list[Finding]:
        """The same for the rules that look at each frame; the newest is the last of `context.frames`."""
        return self._ask([one for one in self._rules if one.clock != "look"], context)

    def add(self, finding: Finding) -> list[Finding]:
        """Take a finding from elsewhere; what is new or changed by it."""
        if any(
            one.left_of(finding.code, Evidence(message="", remedy="", sites=finding.sites)) is None
            for one in self._ignored
        ):
            return []
        before = list(self.findings)
        self.findings.append(finding)
        return self._settle(before)

    def end(self) -> list[Finding]:
        """The training is over: the findings that were seen once more since they were given out."""
        now = [(place, one) for place, one in enumerate(self.findings) if self._told.get(place) != one]
        self._told |= dict(now)
        return [one for _, one in now]

    def _ask(self, rules: Iterable[Rule], context: Context) -> list[Finding]:
        before = list(self.findings)
        context.limits = self._limits
        for rule in rules:
            is_young = context.num_steps < rule.after and not context.is_end
            if is_young or (context.is_warming_up and not rule.in_warmup):
                continue
            context.rule = rule.code
            try:
                seen = {one.key: one for evidence in rule.look(context) if (one := self._wanted(rule, evidence))}
            except Abstain as why:
                self.abstained[rule.code] = str(why)
                continue
            except Exception as error:
                self._rules.remove(rule)
                if self._on_failure is None:
                    raise
                self._on_failure(rule.code, error)
                continue
            self.abstained.pop(rule.code, None)
            self._note(rule, seen, context)
        return self._settle(before)

    def _wanted(self, rule: Rule, evidence: Evidence) -> Evidence | None:
        left: Evidence | None = evidence
        for one in self._ignored:
            left = one.left_of(rule.code, left) if left is not None else None
        return left

    def _note(self, rule: Rule, seen: Mapping[str, Evidence], context: Context) -> None:
        """Count what was seen and what was not, and begin, renew and end findings."""
        step = max(context.step, 0)
        for key, evidence in seen.items():
            case = self._cases.setdefault((rule.code, key), _Case())
            if case.num_seen == 0 and case.place is None:
                case.first_step = step
            case.num_seen, case.num_missing = case.num_seen + 1, 0
            holds = rule.holds if evidence.holds is None else evidence.holds
            if case.place is not None:
                self.findings[case.place] = _renewed(self.findings[case.place], rule, evidence, step)
            elif case.num_seen >= holds or (context.is_end and case.num_seen > 1 and case.num_seen >= holds - 1):
                case.place = len(self.findings)
                self.findings.append(_made(rule, evidence, case.first_step, step))
        for (code, key), case in list(self._cases.items()):
            if code != rule.code or key in seen:
                continue
            case.num_seen, case.num_missing = 0, case.num_missing + 1
            if case.place is None or case.num_missing >= rule.ends_after:
                del self._cases[code, key]
                self._ended |= {case.place} if case.place is not None else set()

    def _settle(self, before: list[Finding]) -> list[Finding]:
        """Work out causes anew where anything is new, and give out what is not as it was."""
        if len(self.findings) > len(before):
            self.findings[:] = explained(self.findings, self._all)
        known = [*before, *[None] * (len(self.findings) - len(before))]
        states = enumerate(zip(known, self.findings, strict=True))
        given = {n: now for n, (was, now) in states if was is None or n in self._ended or not is_repeated(was, now)}
        self._ended.clear()
        self._told |= given
        return list(given.values())


def _made(rule: Rule, evidence: Evidence, first_step: int, step: int) -> Finding:
    first = first_step if evidence.first_step is None else evidence.first_step
    return Finding(
        code=rule.code,
        name=rule.name,
        sites=evidence.sites,
        first_step=first,
        last_step=max(step, first),
        message=evidence.message,
        evidence=dict(evidence.numbers),
        remedy=evidence.remedy,
        severity=evidence.severity or rule.severity,
        certainty=rule.certainty,
        key=evidence.key,
    )


def _renewed(finding: Finding, rule: Rule, evidence: Evidence, step: int) -> Finding:
    """The finding as it is at one more look: it stays as severe as it was, and keeps the sites that it had."""
    severity = evidence.severity or rule.severity
    if set(evidence.sites) <= set(finding.sites) and SEVERITIES.index(severity) <= SEVERITIES.index(finding.severity):
        return replace(finding, last_step=max(step, finding.first_step))
    made = _made(rule, evidence, finding.first_step, step)
    sites = (*evidence.sites, *(one for one in finding.sites if one not in evidence.sites))
    worst = max(severity, finding.severity, key=SEVERITIES.index)
    return replace(made, first_step=finding.first_step, sites=sites, severity=worst, explained_by=finding.explained_by)
