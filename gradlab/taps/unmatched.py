"""Why a pattern met no tensor: the likely reason, in a sentence for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from gradlab.errors import did_you_mean, shortlist
from gradlab.sites.names import module_names
from gradlab.sites.patterns import chooses
from gradlab.taps.forward.compiled import why_unseen
from gradlab.taps.rule import Tap


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
