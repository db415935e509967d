"""Rules and their register: what a rule is, what it yields, and the decorator that makes one.

Belongs here: the fields of a rule. Does not: which rules there are (`catalogue`), or when they are asked (`engine`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from gradlab.diagnose.context import Context
from gradlab.errors import UsageError

Certainty = Literal["exact", "scale-free", "own history"]
Severity = Literal["info", "warning", "error"]
Clock = Literal["look", "frame", "both"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a rule has seen at one look: the case, and the numbers that it rests on."""

    message: str
    """One sentence with its full stop: what, where, number against number."""
    remedy: str
    """What to do."""
    sites: tuple[str, ...] = ()
    """Modules or parameters, the most telling one first; none where it is the whole run's."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    severity: Severity | None = None
    """Where it is not that of the rule."""
    key: str = ""
    """Tells apart several findings of one rule in one run, as of two optimizers. Folding is better: one finding with
    many sites."""
    first_step: int | None = None
    """Where it began before the looks that show it."""
    holds: int | None = None
    """How many looks in a row must show it, where that is not the rule's."""


Look = Callable[[Context], Iterable[Evidence]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule: when it is asked, and how sure it is."""

    code: str
    """Letters and three digits, for ever the same: `GL303`."""
    name: str
    """Words with hyphens: `decay-dominates`."""
    look: Look
    certainty: Certainty
    severity: Severity
    after: int
    """It is not asked before so many steps."""
    holds: int
    """So many looks in a row must show it."""
    clock: Clock
    """`look`: after the first steps, every few steps later on, and at the end. `frame`: at each frame of the taps."""
    ends_after: int
    """So many looks in a row that do not show it end a finding."""
    in_warmup: bool
    """Whether it is asked while the learning rate rises."""
    explains: tuple[str, ...]
    """Codes, or their beginnings, of what follows from it: (`GL402`, `GL6`)."""
    is_preview: bool

    @property
    def about(self) -> str:
        """What `gradlab rules CODE` and its page say, in Markdown: the docstring of its function."""
        return inspect.getdoc(self.look) or ""

    def is_cause_of(self, code: str) -> bool:
        """Whether a finding with another code may follow from it."""
        return code != self.code and code.startswith(self.explains) if self.explains else False


_rules: dict[str, Rule] = {}


def rule(
    code: str,
    name: str,
    *,
    certainty: Certainty,
    severity: Severity = "warning",
    after: int = 0,
    holds: int = 1,
    clock: Clock = "look",
    ends_after: int | None = None,
    in_warmup: bool = True,
    explains: Iterable[str] = (),
    is_preview: bool = False,
) -> Callable[[Look], Look]:
    """Make a rule of a function from a `Context` to pieces of `Evidence`.

        @rule("MY001", "weights-too-large", certainty="scale-free", holds=3)
        def weights_too_large(context):
            norms = context.readings.last("weight.norm")
            for place in np.flatnonzero(norms > context.limit(100.0)):
                site = context.readings.sites[place]
                yield Evidence(sites=(site,), message=f"{site} has a norm of {norms[place]:.3g}.", remedy="Decay it.")

    The function is called at every look: after the first steps, every few steps later on, and at the end. It sees
    plain values. It raises `Abstain` where it cannot tell, as `context.readings` does for what is not measured.

    Args:
        code: letters and three digits, unlike that of any other rule.
        name: words with hyphens.
        certainty: `exact`, `scale-free` or `own history`.
        severity: of its findings, where the evidence does not say another.
        after: ask it from so many steps on.
        holds: how many looks in a row must show the same before there is a finding.
        clock: `look`, `frame` for a rule that looks at the newest frame of the taps (`context.frames[-1]`), or `both`.
        ends_after: how many looks in a row without it end a finding; three times `holds` where left out.
        in_warmup: whether to ask it while the learning rate rises.
        explains: codes, or beginnings of codes, of findings that follow from its own.
        is_preview: whether it has to be selected.
    Raises:
        UsageError: the code is not of that form, or another rule has it.
    """
    if not re.fullmatch(r"[A-Z]+\d{3}", code):
        raise UsageError(f"the code of a rule is letters and three digits, as in MY001; got {code!r}.")

    def register(look: Look) -> Look:
        earlier = _rules.get(code)
        if earlier is not None and (earlier.look.__module__, earlier.name) != (look.__module__, name):
            raise UsageError(f"the code {code} is taken by the rule {earlier.name!r}.")
        _rules[code] = Rule(
            code=code,
            name=name,
            look=look,
            certainty=certainty,
            severity=severity,
            after=after,
            holds=holds,
            clock=clock,
            ends_after=3 * holds if ends_after is None else ends_after,
            in_warmup=in_warmup,
            explains=tuple(explains),
            is_preview=is_preview,
        )
        return look

    return register


def registered() -> Mapping[str, Rule]:
    """The rules made so far in this process, by code, in order."""
    return MappingProxyType(dict(sorted(_rules.items())))
