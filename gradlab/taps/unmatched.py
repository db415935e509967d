"""Patterns that match nothing: refused at once where they are for parameters, else reported after a first step.

Belongs here: which patterns these are, and the likely reason in a sentence for a person. Does not: what a pattern
matches (`sites.patterns`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from gradlab.errors import TapError, did_you_mean, shortlist, warn
from gradlab.sites.names import module_names
from gradlab.sites.patterns import chooses, require_match
from gradlab.taps.forward.compiled import why_unseen
from gradlab.taps.plan import PARAMETER_QUANTITIES, Plan
from gradlab.taps.rule import Tap, check_own_stats


def check_taps(taps: Sequence[Tap], parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse patterns for parameters that match none, and stats that cannot be told apart.

    Raises:
        TapError: the message has the near misses.
    """
    check_own_stats(taps)
    for rule in taps:
        if _is_of_parameters(rule):
            for pattern in rule.patterns:
                require_match(pattern, list(parameters))


class PatternReport:
    """Says once of each rule which of its patterns met no tensor in its first step; with `strict` it raises."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._reported: set[int] = set()
        """Ids of the rules whose first step is over."""

    def report(self, plan: Plan, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        """After a frame of a plan.

        Raises:
            TapError: a pattern met nothing, and `strict`.
        """
        for rule in plan.rules:
            if id(rule) in self._reported or _is_of_parameters(rule):
                continue
            self._reported.add(id(rule))
            names = [*plan.targets, *parameters]
            for pattern in unmatched(rule, names):
                reason = why_unmatched(pattern, names, model, plan.without_tensors)
                if self._strict:
                    raise TapError(reason)
                warn(f"a tap saw nothing in its first step: {reason}")


def _is_of_parameters(rule: Tap) -> bool:
    """Whether a rule is of nothing but parameters, whose names are known at once."""
    return all(quantity in PARAMETER_QUANTITIES for quantity in rule.quantities)


def unmatched(rule: Tap, names: Sequence[str]) -> Iterator[str]:
    """The patterns of a rule, an exclusion's without its `!`, that reach none of the names."""
    for pattern in rule.patterns:
        bare = pattern.removeprefix("!")
        if not any(chooses(bare, name) for name in names):
            yield bare


def why_unmatched(
    pattern: str, names: Sequence[str], model: nn.Module, returned: Mapping[str, str] | None = None
) -> str:
    """The likely reason why a pattern met no tensor in a step that had these sites.

    Args:
        pattern: the pattern.
        names: the sites that the step had.
        model: the model.
        returned: of modules that returned something in which no tensor is seen, what that was.
    """
    for site, kind in (returned or {}).items():
        if chooses(pattern, site):
            nothing = kind == "NoneType"
            what = "nothing (None)" if nothing else f"a {kind}, in which no tensor is seen"
            fix = (
                "" if nothing else " Tensors are seen in tuples, lists, mappings and dataclasses; gradlab.tap(name, "
                "tensor) names any other in the forward."
            )  # fmt: skip
            return f"{pattern!r} matches {site}, which was called and returned {what}.{fix}"
    modules = [name for name in module_names(model).values() if name]
    idle = [name for name in modules if chooses(pattern, name)]
    if idle:
        return (
            f"{pattern!r} matches the module {shortlist(idle, 3)}, which was not called in that step. A parent "
            f"that uses a child's weights without calling it shows nothing of it (nn.MultiheadAttention.out_proj)."
        )
    near = did_you_mean(pattern, dict.fromkeys([*names, *modules]))
    compiled = why_unseen(model)
    reason = f"no tensor matches {pattern!r}.{near} The step had: {shortlist(names)}."
    return f"{reason} {compiled}" if compiled else reason
