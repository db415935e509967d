"""What to measure of Jacobians to judge a finding: the sharpness for steps that are too large, growth for gradients.

Belongs here: which measurement, at which sites. Does not: when it is measured (`scheduled`).
"""

from __future__ import annotations

from torch import nn

from gradlab.finding import Finding
from gradlab.jacobians.options import DepthGrowth, Sharpness
from gradlab.sites.names import module_names, unwrapped

_BY_SHARPNESS = ("GL301", "GL302", "GL306", "GL307")
"""Of steps: gradient descent is unstable where the largest eigenvalue exceeds 2 / lr."""
_BY_GROWTH = ("GL402", "GL405")
"""Of signals that vanish or explode with depth."""


def measurement_for(finding: Finding, model: nn.Module) -> DepthGrowth | Sharpness | None:
    """What helps to judge a finding; None where nothing does."""
    label = finding.code
    if finding.code in _BY_SHARPNESS:
        return Sharpness(label=label)
    if finding.code in _BY_GROWTH and (sites := sites_in_depth(model)):
        return DepthGrowth(at=sites, wrt=_beginning(model), label=label)
    return None


def sites_in_depth(model: nn.Module) -> list[str]:
    """The modules that follow one another in a model: the children of its longest list, else its own children.

    The last one of all is left out: what it returns is the output, where the way back begins.
    """
    core = unwrapped(model)
    names = module_names(core)
    lists = [one for one in names if isinstance(one, nn.Sequential | nn.ModuleList) and len(one) > 2]
    holder = max(lists, key=lambda one: len(one), default=core)
    inside = [
        names[child] for child in holder.children() if child in names and next(child.parameters(), None) is not None
    ]
    return inside[:-1] if holder is core else inside


def _beginning(model: nn.Module) -> str:
    """The embedding of tokens, which have no gradient; the input where there is none."""
    names = module_names(unwrapped(model))
    return next((name for module, name in names.items() if isinstance(module, nn.Embedding)), "input")
