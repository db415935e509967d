"""The finding: one diagnosis, as people read it and as JSON holds it.

Belongs here: the fields, and a finding to and from a record. Does not: how one is found (`diagnose`, `profiling`,
`nonfinite`), or where it goes (`sinks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gradlab.arrays import protect_fields
from gradlab.errors import ArgumentError
from gradlab.values import Value, abridged, few, short

SEVERITIES = ("info", "warning", "error")
"""From the mildest to the worst."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Finding(Value):
    """A diagnosis in one sentence: what is wrong, where, since when, and what to do about it.

    A later state of the same finding (it has ended, its cause is known by now, more sites have joined) is a further
    object with the same `code` and `key`.
    """

    name: str
    """A short stable name of the rule, in words with hyphens: `no-zero-grad`."""
    first_step: int
    """The optimizer step at which it was seen first."""
    message: str
    """One sentence for a person, with the numbers that it rests on."""
    code: str = ""
    """The stable code of the rule (`GL103`); "" of a finding of somebody's own."""
    sites: tuple[str, ...] = ()
    """The modules or parameters that it is about, the most telling one first; none where it is the whole run's."""
    last_step: int | None = None
    """The last step at which it was seen; that of `first_step` where left out."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The numbers that the sentence rests on, by name."""
    remedy: str = ""
    """What to try."""
    severity: str = "warning"
    """`info`, `warning` or `error`."""
    certainty: str = "exact"
    """`exact` (a fact), `scale-free` (a ratio whose 1 means something), `own history` (a change against what was)."""
    explained_by: str | None = None
    """The code of the finding that is the cause of this one, which is then a symptom."""
    key: str = ""
    """Tells apart several findings of one rule in one run."""

    def __post_init__(self) -> None:
        if isinstance(self.sites, str):
            object.__setattr__(self, "sites", (self.sites,))
        elif not isinstance(self.sites, list | tuple):
            raise ArgumentError(f"Finding(sites=...) is a list of names of sites; got {abridged(self.sites)}.")
        if self.last_step is None:
            object.__setattr__(self, "last_step", self.first_step)
        protect_fields(self)

    @property
    def kind(self) -> str:
        """`name` with underscores, as findings were called before they had codes: `nonfinite_origin`."""
        return self.name.replace("-", "_")

    @property
    def site(self) -> str:
        """The most telling of its sites, "" for the whole run."""
        return self.sites[0] if self.sites else ""

    @property
    def step(self) -> int:
        """`first_step`."""
        return self.first_step

    @property
    def advice(self) -> str:
        """`remedy`."""
        return self.remedy

    def __repr__(self) -> str:
        where = f" at {few(map(short, self.sites))}" if self.sites else ""
        what = f"{self.code} {self.name}" if self.code else self.name
        return f"Finding(step {self.first_step}, {self.severity}, {what}{where}: {short(self.message)})"


def finding_record(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it: its fields, and `nonfinite` as in `finite_or_null`."""
    evidence, nonfinite = finite_or_null(finding.evidence)
    record = {one.name: getattr(finding, one.name) for one in fields(finding)} | {"evidence": evidence}
    ordered = {name: record[name] for name in _ORDER} | {"sites": list(finding.sites)}
    return ordered | ({"nonfinite": nonfinite} if nonfinite else {})


_ORDER = "code name sites first_step last_step message evidence remedy severity certainty explained_by key".split()


def finding_of_record(record: Mapping[str, Any]) -> Finding:
    """The finding that a record holds, of the form that findings had before they had codes, too.

    Raises:
        TypeError, ValueError, KeyError: it is no record of a finding.
    """
    evidence = dict(record.get("evidence") or {})
    evidence |= {name: float(text) for name, text in (record.get("nonfinite") or {}).items()}
    if "kind" in record:
        renamed: dict[str, Any] = {
            "name": str(record["kind"]).replace("_", "-"),
            "first_step": int(record["step"]),
            "sites": (str(record["site"]),) if record.get("site") else (),
            "remedy": str(record.get("advice", "")),
        }
        kept = {name: record[name] for name in ("message", "severity") if name in record}
        return Finding(**renamed, **kept, evidence=evidence)
    known = {name: record[name] for name in _ORDER if name in record}
    return Finding(**{**known, "sites": tuple(map(str, record.get("sites", ()))), "evidence": evidence})


def finite_or_null(values: Mapping[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """`values` as JSON can hold them: None for what is not finite, which is named apart as `nan`, `inf` or `-inf`."""
    plain: dict[str, float | None] = {}
    nonfinite: dict[str, str] = {}
    for name, value in values.items():
        number = float(value)
        if math.isfinite(number):
            plain[name] = number
        else:
            plain[name], nonfinite[name] = None, str(number)
    return plain, nonfinite
