"""A hook around the `step` of an optimizer that runs none of torch's hooks, such as an object of another kind.

Belongs here: being called before and after. Does not: which optimizers need it (`optimizers.runs_hooks`), or counting
the steps (`monitor.steps`).
"""

from __future__ import annotations

import functools
import types
from typing import Any, Protocol


class StepListener(Protocol):
    """Who is told when a `step` begins and ends."""

    def step_begins(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Before it; may give other arguments."""

    def step_ends(self, optimizer: Any, *, has_stepped: bool) -> None:
        """After it; not `has_stepped` where it raised."""


class StepHook:
    """A method in the place of the `step` of one object.

    It is a bound method like the one before, so that copies and pickles of the object, and the schedulers of torch,
    find what they expect: a copy steps as it would have, and is not counted.
    """

    def __init__(self, known_as: Any, optimizer: Any, listener: StepListener) -> None:
        """Not in place yet.

        Args:
            known_as: what the listener is told has stepped: `optimizer` itself, or an object in its place.
            optimizer: has a method `step`.
            listener: is told.
        """
        self.known_as = known_as
        self._optimizer = optimizer
        self._had_own = "step" in getattr(optimizer, "__dict__", {})
        self._original = original = optimizer.step
        self._method: Any = None

        @functools.wraps(original)
        def step(one: Any, *args: Any, **kwargs: Any) -> Any:
            if one is not self._optimizer:
                return getattr(original, "__func__", type(one).step)(one, *args, **kwargs)
            changed = listener.step_begins(known_as, (one, *args), kwargs)
            (_, *args), kwargs = changed or ((one, *args), kwargs)  # type: ignore[assignment]
            has_stepped = False
            try:
                result = original(*args, **kwargs)
                has_stepped = True
            finally:
                listener.step_ends(known_as, has_stepped=has_stepped)
            return result

        self._function = step

    def install(self) -> bool:
        """Put it in place; False where the object refuses that."""
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
