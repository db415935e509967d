"""Which rules are asked, with which limits, and what is done about what they find.

Belongs here: the options and their checks, without torch. Does not: what a rule is (`registry`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from gradlab.arguments import TEXT, Kind, check_fields, listed, named_fields
from gradlab.diagnose.catalogue import all_rules, matching
from gradlab.errors import UsageError
from gradlab.values import ReadOnlyDict, Value


@named_fields
@dataclass(frozen=True, eq=False, repr=False)
class Diagnose(Value):
    """What the diagnosis looks for: `Diagnose(ignore=["GL301", "GL401@encoder.*"], limits={"GL303": 0.8})`.

    A rule is named by its code (`GL301`), a beginning of codes (`GL3`), or its name (`step-too-large`).

    Raises:
        UsageError: a code or name is that of no rule; the message has the near ones.
    """

    _: KW_ONLY
    select: str | Sequence[str] = ()
    """The rules that are asked, all that are no preview where left out."""
    ignore: str | Sequence[str] = ()
    """Rules that are not; with `@` and a glob over sites, not for those sites."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """By rule: what is used in place of its own limit, which `gradlab rules CODE` tells."""

    def __post_init__(self) -> None:
        check_fields(self, "Diagnose()", _FIELDS, UsageError)
        object.__setattr__(self, "limits", ReadOnlyDict(self.limits))
        rules = all_rules()
        for patterns in (self.select, [one.partition("@")[0] for one in self.ignore], self.limits):
            matching(patterns, rules)


def _limits(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError
    for limit in value.values():
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise TypeError
    return {str(code): float(limit) for code, limit in value.items()}


_FIELDS = {
    "select": listed(TEXT, "codes or names of rules", alone=True),
    "ignore": listed(TEXT, "codes or names of rules", alone=True),
    "limits": Kind("a mapping from rules to numbers", _limits),
}
