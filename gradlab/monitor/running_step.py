"""A call of an optimizer's `step` that is under way: what steps inside of it, and which gradients it uses.

Belongs here: what can be seen of such a call from outside. Does not: what follows from it (`steps`).
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradlab.hooks.interpreter import without_torch_function
from gradlab.optimizers import parameters_of


class RunningStep:
    """The outermost `step` that is under way.

    Args:
        optimizer: whose it is.
        always_ends: whether its end is noticed even where it raises; hooks of torch's do not run then.
        is_wrapper: whether it is for others to step inside of it.
    """

    def __init__(self, optimizer: Any, *, always_ends: bool, is_wrapper: bool) -> None:
        self._ref = weakref.ref(optimizer)
        self._always_ends = always_ends
        self.depth = 1
        """How many calls of it are nested, as by `super().step()`."""
        self.inner_ids: set[int] = set()
        """Ids of the optimizers that have stepped inside of it."""
        self._parameters = parameters_of(optimizer) if is_wrapper else []
        self._versions = [p._version for p in self._parameters] if is_wrapper else None
        self._gradients = UsedGradients(optimizer)

    def is_of(self, optimizer: Any) -> bool:
        """Whether it is the step of this optimizer."""
        return self._ref() is optimizer

    def is_open(self, *, but: int = 0) -> bool:
        """Whether it is under way still; one that raised is not. `but`: how many calls are just being entered."""
        optimizer = self._ref()
        return self._always_ends or (optimizer is not None and _num_steps_under_way(optimizer) > but)

    def had_gradients(self) -> bool:
        """Whether there were gradients when it began; not so with a closure."""
        return self._gradients.exist

    def have_gradients_changed(self) -> bool:
        """Whether the gradients are others than when it began."""
        return not self._gradients.are_current()

    def has_stepped(self) -> bool:
        """Whether anything has been updated, where it is for other optimizers to do so."""
        has_inner = bool(self.inner_ids)
        return self._versions is None or has_inner or self._versions != [p._version for p in self._parameters]


class UsedGradients:
    """The gradients that a step uses: as long as they are the same, no backward has come since. One stands for all."""

    def __init__(self, optimizer: Any) -> None:
        with without_torch_function():  # a subclass of Tensor would see our questions as the user's
            p = _first_with_gradient(optimizer)
            self._parameter = p if p is None else weakref.ref(p)
            self._grad = None if p is None else weakref.ref(p.grad)
            self._version = 0 if p is None else p.grad._version  # type: ignore[union-attr]

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        return self._parameter is not None

    def are_current(self) -> bool:
        """Whether an optimizer that steps now uses the same gradients."""
        p = self._parameter() if self._parameter is not None else None
        grad = self._grad() if self._grad is not None else None
        with without_torch_function():
            return p is not None and grad is not None and p.grad is grad and grad._version == self._version


def is_any_step_under_way() -> bool:
    """Whether this thread is inside of a `step` of torch's, of whichever optimizer."""
    return any(True for _ in _wrapper_frames())


def _num_steps_under_way(optimizer: Any) -> int:
    """How many of torch's wrappers around `step` are running for an optimizer; one whose step raised has none left."""
    return sum(1 for frame in _wrapper_frames() if frame.f_locals.get("self") is optimizer)


def _wrapper_frames() -> Iterator[Any]:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _WRAPPER and "pre_hook" in frame.f_code.co_varnames:
            yield frame
        frame = frame.f_back  # type: ignore[assignment]


_WRAPPER = inspect.getfile(Optimizer)


def _first_with_gradient(optimizer: Any) -> Tensor | None:
    """Nearly always its first parameter, so no list of all is made."""
    groups = getattr(optimizer, "param_groups", None)
    for group in groups if isinstance(groups, list) else ():
        for p in group.get("params", ()):
            if getattr(p, "grad", None) is not None:
                return p  # type: ignore[no-any-return]
    return None
