"""Which rules are asked, with which limits, and what is done about what they find.

Belongs here: the options and their checks, without torch, and the two variables of the environment. Does not: what a
rule is (`registry`), or how a reaction is carried out (`reactions`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from gradlab.arguments import TEXT, Kind, check_fields, listed, named_fields
from gradlab.errors import UsageError, did_you_mean, warn
from gradlab.values import ReadOnlyDict, Value

if TYPE_CHECKING:
    from gradlab.finding import Finding

SELECT, IGNORE = "GRADLAB_SELECT", "GRADLAB_IGNORE"
"""Variables of the environment with codes or names of rules, separated by commas: for scripts that nobody may touch."""
Reaction = Literal["log", "checkpoint", "profile", "jacobian", "stop"]
REACTIONS: tuple[Reaction, ...] = get_args(Reaction)


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
    on_finding: Reaction | Callable[[Finding], object] = "log"
    """At a finding above `info` that no other explains, once a code and at most three times a run: only `log` it, save
    a `checkpoint` (in a Trainer), record three steps (`profile`), measure what helps to judge it (`jacobian`), or
    `stop`; or a function, which is given the finding."""

    def __post_init__(self) -> None:
        check_fields(self, "Diagnose()", _FIELDS, UsageError)
        object.__setattr__(self, "limits", ReadOnlyDict(self.limits))
        _check_names((*self.select, *map(rule_part, self.ignore), *self.limits))

    def with_environment(self, environment: Mapping[str, str] | None = None) -> Diagnose:
        """These options as the environment changes them, which may belong to a script that nobody may touch.

        `GRADLAB_SELECT` takes the place of `select`, `GRADLAB_IGNORE` adds to `ignore`. What names no rule is left out
        with one warning: the script has to go on.
        """
        environment = os.environ if environment is None else environment
        select, ignore = _known(SELECT, environment), _known(IGNORE, environment)
        if not select and not ignore:
            return self
        return replace(self, select=select or self.select, ignore=(*self.ignore, *ignore))


def rule_part(pattern: str) -> str:
    """What names the rule in a pattern of `ignore`: `GL401` in `GL401@encoder.*`."""
    return pattern.partition("@")[0]


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text that separates them by commas."""
    return tuple(word for word in map(str.strip, text.split(",")) if word)


def _check_names(names: Iterable[str]) -> None:
    """Raise for what names no rule. The rules are imported only where there is something to check."""
    if names := tuple(names):
        from gradlab.diagnose.catalogue import all_rules, matching

        matching(names, all_rules())


def _known(variable: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    known = []
    for word in words_of(environment.get(variable, "")):
        try:
            _check_names([rule_part(word)])
        except UsageError as error:
            warn(f"{variable}: {error}")
        else:
            known.append(word)
    return tuple(known)


def _limits(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError
    for limit in value.values():
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise TypeError
    return {str(code): float(limit) for code, limit in value.items()}


def _reaction(value: object) -> object:
    if callable(value) or (isinstance(value, str) and value in REACTIONS):
        return value
    raise ValueError


def _near_reaction(value: object) -> str:
    return did_you_mean(value, REACTIONS, most=1).strip()


_FIELDS: Mapping[str, Any] = {
    "select": listed(TEXT, "codes or names of rules", alone=True),
    "ignore": listed(TEXT, "codes or names of rules", alone=True),
    "limits": Kind("a mapping from rules to numbers", _limits),
    "on_finding": Kind(f"{', '.join(REACTIONS)} or a function", _reaction, _near_reaction),
}
