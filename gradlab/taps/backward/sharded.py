"""Gradients of sharded parameters (FSDP2), as far as they tell that a backward has changed them.

A sharded gradient is added to in its local piece, which the DTensor around it does not notice; and while gradients are
not reduced (`set_requires_gradient_sync(False)`, the `no_sync` of FSDP2) they wait beside the unsharded parameter, and
the parameter's own `grad` does not change at all. Not here: the numbers of these gradients (`parameters`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from torch import nn

from gradlab.errors import warn
from gradlab.sites.names import all_modules
from gradlab.taps.rule import Tap


class _Versions:
    """Stands for a gradient where only its version is asked for."""

    __slots__ = ("_version",)

    def __init__(self, *tensors: Any) -> None:
        self._version = tuple([None if one is None else one._version for one in tensors])


def gradient_reader(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Callable[[Any], Any]:
    """A function that takes a parameter to its gradient, or to what stands for it; None where there is none yet."""
    if not any(hasattr(p, "_local_tensor") for p in parameters):
        return attrgetter("grad")

    @cache
    def waiting() -> dict[int, Any]:  # in the first backward: until the first forward parameters may be replaced
        return {id(one.sharded_param): one for one in _sharded_parameters(model)}

    def read(parameter: Any) -> _Versions | None:
        own, unreduced = parameter.grad, _unreduced(waiting().get(id(parameter)))
        if own is None and unreduced is None:
            return None
        return _Versions(getattr(own, "_local_tensor", own), unreduced)

    return read


def say_what_is_not_seen(model: nn.Module, rules: Sequence[Tap]) -> None:
    """Warn where single backwards are wanted of parameters whose gradients nobody sees before they are reduced."""
    wanted = any("micro" in rule.stages for rule in rules)
    if wanted and next(iter(_sharded_parameters(model)), None) is not None:
        warn(
            "stage 'micro' and the noise scale are not measured of parameters that fully_shard (FSDP2) has sharded: "
            "their gradients are reduced before anybody sees those of one backward."
        )


def _sharded_parameters(model: nn.Module) -> Iterable[Any]:
    """What `fully_shard` keeps of each parameter; torch has no public name for it."""
    for module in all_modules(model):
        state_of: Any = getattr(module, "_get_fsdp_state", None)
        if state_of is not None:
            state = state_of()
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            for group in groups:
                yield from group.fsdp_params if group is not None else ()


def _unreduced(one: Any) -> Any:
    """The whole gradient of this rank, where it waits to be reduced."""
    if one is None:
        return None
    waiting = one.unsharded_accumulated_grad
    return waiting if waiting is not None else getattr(getattr(one, "_unsharded_param", None), "grad", None)
