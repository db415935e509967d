"""Tensor parallelism: the ranks work on one batch together, so what they see of a tensor does not add up to the whole.

Of a parameter (DTensor) a rank knows which piece it holds. Of an activation it has a plain tensor that may be a piece,
a copy or a sum's term, and nothing tells which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from gradlab.errors import warn
from gradlab.sites.names import all_modules
from gradlab.taps.plan import PARAMETER_QUANTITIES
from gradlab.taps.rule import Tap


def is_tensor_parallel(model: nn.Module) -> bool:
    """Whether `parallelize_module` has been at any part of a model."""
    return any(getattr(module, "_distribute_module_applied", False) for module in all_modules(model))


def combinable(taps: Sequence[Tap], model: nn.Module) -> tuple[Tap, ...]:
    """The rules whose numbers can be combined over ranks: all, of a tensor-parallel model those of parameters."""
    if not is_tensor_parallel(model):
        return tuple(taps)
    kept = [_of_parameters(rule) for rule in taps]
    if kept != list(taps):
        warn(
            f"outputs of {type(model).__name__} and their gradients are not measured: the model is tensor parallel, "
            "and nothing tells whether a rank has all of an output or a piece of it."
        )
    return tuple(rule for rule in kept if rule is not None)


def _of_parameters(rule: Tap) -> Tap | None:
    """What a rule wants of parameters; None where that is nothing."""
    left = tuple(quantity for quantity in rule.quantities if quantity in PARAMETER_QUANTITIES)
    if left == rule.quantities:
        return rule
    return replace(rule, of=left) if left else None
