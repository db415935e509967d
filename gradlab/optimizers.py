"""Optimizers: one of torch's, a wrapper around one, or any other object with a `step`, as a user may give them.

Belongs here: which of torch's optimizers are inside a wrapper, whether one runs hooks, which parameters it steps, and
the scale of a GradScaler that its gradients carry. Does not: hooks on a `step` (`hooks`), or counting steps
(`monitor.steps`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Wrappers, and what is inside of them.

_WRAPPERS = {"AcceleratedOptimizer", "_FabricOptimizer", "LightningOptimizer"}
"""Classes whose attribute `optimizer` is the one that steps; hooks on the wrapper would never run."""
_MOST_LEVELS = 3
"""How deep a wrapper is searched for optimizers."""


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer inside any wrappers of Accelerate, Fabric and Lightning."""
    while any(cls.__name__ in _WRAPPERS for cls in type(optimizer).__mro__) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def optimizer_list(given: Any) -> list[Any]:
    """What was given as an optimizer, a list or a mapping of them, as a list without the wrappers of frameworks."""
    if given is None:
        return []
    if hasattr(given, "step") or isinstance(given, Optimizer) or not isinstance(given, Iterable):
        return [inner_optimizer(given)]
    return [inner_optimizer(one) for one in (given.values() if isinstance(given, Mapping) else given)]


def optimizers_inside(wrapper: Any) -> list[Optimizer]:
    """The torch optimizers that a wrapper holds as attributes, or in lists or dicts among these."""
    found: dict[int, Optimizer] = {}
    waiting = [(wrapper, 0)]
    while waiting:
        one, level = waiting.pop()
        for value in _attributes(one):
            if has_hooks(value):
                found.setdefault(id(value), value)
            elif level < _MOST_LEVELS and (isinstance(value, Optimizer) or callable(getattr(value, "step", None))):
                waiting.append((value, level + 1))
    found.pop(id(wrapper), None)
    return list(found.values())


def _attributes(one: Any) -> Iterator[Any]:
    for value in list(getattr(one, "__dict__", {}).values()):
        if isinstance(value, list | tuple):
            yield from value
        elif type(value) is dict:
            yield from value.values()
        else:
            yield value


# Hooks.


def has_hooks(optimizer: Any) -> bool:
    """Whether hooks can be put on an optimizer: a subclass may never have called `Optimizer.__init__`."""
    return isinstance(optimizer, Optimizer) and "_optimizer_step_post_hooks" in vars(optimizer)


def runs_hooks(optimizer: Any) -> bool:
    """Whether a call of `optimizer.step` runs hooks: not where the instance has a `step` of its own."""
    if not has_hooks(optimizer) or not getattr(type(optimizer).step, "hooked", False):
        return False
    own = vars(optimizer).get("step")
    own = getattr(own, "_torchdynamo_orig_callable", own)
    return own is None or getattr(own, "hooked", False) or getattr(own, "_wrapped_by_lr_sched", False)


# Parameters.


def parameters_of(optimizer: Any) -> list[Tensor]:
    """The parameters in an optimizer's `param_groups`; none where it has no such list."""
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list | tuple):
        return []
    own = [group.get("params") for group in groups if isinstance(group, Mapping)]
    return [p for group in own if isinstance(group, list | tuple) for p in group if isinstance(p, Tensor)]


def parameter_ids(optimizers: Iterable[Any]) -> set[int]:
    """The ids of all parameters that some optimizers step."""
    return {id(p) for one in optimizers for p in parameters_of(one)}


def training_optimizers(model: nn.Module, given: Any) -> list[Any] | None:
    """Those of a framework's optimizers that step parameters of a model, or have one inside that does; None if none.

    A framework hands over what it has, dummies and optimizers of copies included, and must not be stopped by it.
    """
    ours = {id(p) for p in model.parameters()}
    each = [(one, [one, *optimizers_inside(one)]) for one in optimizer_list(given)]
    return [one for one, all_of in each if not ours.isdisjoint(parameter_ids(all_of))] or None


class UnknownOptimizer:
    """In place of an optimizer of which only the steps are seen: it is taken to step all parameters of the model."""

    def __init__(self, name: str, parameters: Callable[[], Mapping[str, Tensor]]) -> None:
        self.name = name
        self._parameters = parameters

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All parameters of the model, as an optimizer of torch has them."""
        return [{"params": list(self._parameters().values())}]


# The loss scale.

_CALLERS = ("step", "_maybe_opt_step")
"""Methods of a GradScaler that call an optimizer."""
_MOST_FRAMES = 8
"""How far up the callers of an optimizer are looked through for them."""


class LossScale:
    """Knows the GradScaler of a training, given or found by itself."""

    def __init__(self, scaler: Any = None) -> None:
        self.scaler = scaler

    def now(self) -> Tensor | None:
        """The scale that the gradients of this step's backward carry, None without one; called by an optimizer."""
        if self.scaler is None:
            self.scaler = _calling_scaler()
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        return getattr(self.scaler, "_scale", None)


def _calling_scaler() -> Any:
    """The GradScaler whose `step` is calling the optimizer, if one is."""
    frame = sys._getframe(3)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        owner = frame.f_locals.get("self") if frame.f_code.co_name in _CALLERS else None
        if isinstance(owner, torch.amp.GradScaler):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None
