"""What is given as an optimizer: one of torch's, a wrapper around one, or an object of another kind with a `step`.

Belongs here: which torch optimizer is inside a wrapper, which parameters an object steps, and how calls of a `step`
are seen that no hook of torch's shows. Does not: the counting (`steps`).
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_WRAPPERS = {"AcceleratedOptimizer", "_FabricOptimizer", "LightningOptimizer"}
"""Classes whose attribute `optimizer` is the one that steps; hooks on the wrapper would never run."""
_MOST_LEVELS = 3


class Steps(Protocol):
    """Who is told when a `step` begins and ends."""

    def step_begins(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Before it; may give other arguments."""

    def step_ends(self, optimizer: Any, *, has_stepped: bool) -> None:
        """After it; not `has_stepped` where it raised."""


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer inside any wrappers of Accelerate, Fabric and Lightning."""
    while any(cls.__name__ in _WRAPPERS for cls in type(optimizer).__mro__) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def listed(given: Any) -> list[Any]:
    """What was given as optimizers, one by one, without the wrappers of frameworks."""
    if given is None:
        return []
    if hasattr(given, "step") or isinstance(given, Optimizer) or not isinstance(given, Iterable):
        return [inner_optimizer(given)]
    return [inner_optimizer(one) for one in (given.values() if isinstance(given, Mapping) else given)]


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


def parameters_of(optimizer: Any) -> list[Tensor]:
    """The parameters that an optimizer steps, as far as its `param_groups` tell."""
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list | tuple):
        return []
    own = [group.get("params") for group in groups if isinstance(group, Mapping)]
    return [p for group in own if isinstance(group, list | tuple) for p in group if isinstance(p, Tensor)]


def parameter_ids(optimizers: Iterable[Any]) -> set[int]:
    """The ids of all parameters that some optimizers step."""
    return {id(p) for one in optimizers for p in parameters_of(one)}


def that_train(model: nn.Module, given: Any) -> list[Any] | None:
    """Those of a framework's optimizers that train a model, itself or by what is inside of them; None without any.

    A framework hands over what it has, dummies and optimizers of copies included, and must not be stopped by it.
    """
    ours = {id(p) for p in model.parameters()}
    each = [(one, [one, *optimizers_inside(one)]) for one in listed(given)]
    return [one for one, all_of in each if not ours.isdisjoint(parameter_ids(all_of))] or None


class ByHand:
    """In the place of an optimizer where there is none of torch's kind: its parameters are all of the model's."""

    def __init__(self, name: str, parameters: Callable[[], Mapping[str, Tensor]]) -> None:
        self.name = name
        self._parameters = parameters

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All parameters of the model, as an optimizer of torch has them."""
        return [{"params": list(self._parameters().values())}]


class SeenStep:
    """Shows the calls of a `step` that runs no hooks of torch's, by a method in its place on that one object.

    It is a bound method like the one before, so that copies and pickles of the object, and the schedulers of torch,
    find what they expect: a copy steps as it would have, and is not counted.
    """

    def __init__(self, shown: Any, optimizer: Any, steps: Steps) -> None:
        """Not in place yet.

        Args:
            shown: what the calls are told for, `optimizer` itself or what stands for it.
            optimizer: has a method `step`.
            steps: is told.
        """
        self.shown = shown
        self._optimizer = optimizer
        self._had_own = "step" in getattr(optimizer, "__dict__", {})
        self._original = original = optimizer.step
        self._method: Any = None

        @functools.wraps(original)
        def step(one: Any, *args: Any, **kwargs: Any) -> Any:
            if one is not self._optimizer:
                return getattr(original, "__func__", type(one).step)(one, *args, **kwargs)
            changed = steps.step_begins(shown, (one, *args), kwargs)
            (_, *args), kwargs = changed or ((one, *args), kwargs)  # type: ignore[assignment]
            has_stepped = False
            try:
                result = original(*args, **kwargs)
                has_stepped = True
            finally:
                steps.step_ends(shown, has_stepped=has_stepped)
            return result

        self._function = step

    def place(self) -> bool:
        """Put it in place, which an object may refuse."""
        self._method = types.MethodType(self._function, self._optimizer)
        try:
            self._optimizer.step = self._method
        except (AttributeError, TypeError):
            self._method = None
        return self._method is not None

    def remove(self) -> None:
        """Give the object its own `step` back, unless somebody has put another one on top."""
        own = getattr(self._optimizer, "__dict__", {})
        if self._method is not None and own.get("step") is self._method:
            if self._had_own:
                self._optimizer.step = self._original
            else:
                del self._optimizer.step
        self._method = None


_CALLERS = ("step", "_maybe_opt_step")


_MOST_FRAMES = 8


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
