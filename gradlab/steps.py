"""Steps: which optimizers are counted, what happens just before and after they step, and when a step has ended.

Belongs here: the hooks on optimizers, closures, several optimizers a step. Does not: what is measured at these moments
(`monitor`).
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from gradlab.errors import TapError
from gradlab.taps.identity import is_among
from gradlab.taps.in_backward import is_in_backward
from gradlab.taps.wrappers import inner_optimizer


class Listener(Protocol):
    """Who is told of the moments of a step."""

    def before_update(self, optimizer: Optimizer) -> None:
        """The gradients are complete, the update has not begun."""

    def optimizer_begins(self) -> None:
        """An optimizer's `step` has been entered."""

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""

    def in_backward(self, optimizer: Optimizer, *, has_stepped: bool) -> None:
        """An optimizer is about to step, or has stepped, while the backward goes on."""

    def step_ended(self) -> None:
        """All optimizers have stepped."""


class Steps:
    """Counts the steps of the optimizers of one model.

    Args:
        given: the optimizers to count; where left out, any that owns some of the parameters.
        parameters: tells which parameters the model has now.
        listener: is told.
    Raises:
        TapError: a given optimizer owns none of the model's parameters.
    """

    def __init__(
        self,
        given: Optimizer | Sequence[Optimizer] | None,
        parameters: Callable[[], Mapping[str, nn.Parameter]],
        listener: Listener,
    ) -> None:
        self._parameters = parameters
        self._listener = listener
        one = inner_optimizer(given)
        optimizers = () if one is None else (one,) if isinstance(one, Optimizer) else tuple(map(inner_optimizer, one))
        self._refs = tuple(map(weakref.ref, optimizers))
        self._has_own_hooks = bool(optimizers)
        self._handles: list[RemovableHandle] = []
        self._stepped: set[int] = set()
        self._fresh: set[int] = set()
        """Those that were found when they stepped for the first time."""
        self._depth: dict[int, int] = {}
        """How many calls of an optimizer's hooks are inside each other: `super().step()` may call them once more."""
        for one in self.optimizers:
            if not self._owns_some(one):
                raise TapError(f"the optimizer {type(one).__name__} owns none of the model's parameters.")

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers that are counted. Their state is large: what watches a model must not keep it alive."""
        return tuple([one for ref in self._refs if (one := ref()) is not None])

    @property
    def are_counted(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def attach(self) -> None:
        """Start counting: by hooks of the given optimizers, or by one on all."""
        if self._has_own_hooks:
            for one in self.optimizers:
                self._count(one)
        else:
            self._handles += [
                register_optimizer_step_pre_hook(self._before_any),
                register_optimizer_step_post_hook(self._after_any),
            ]

    def detach(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def add(self, optimizer: Optimizer) -> None:
        """Count one more. It takes the place of those that own some of the same parameters."""
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        others = [
            one
            for one in self.optimizers
            if one is not optimizer and not any(id(p) in mine for group in one.param_groups for p in group["params"])
        ]
        is_new = not is_among(optimizer, self.optimizers)
        self._refs = tuple(map(weakref.ref, [*others, optimizer]))
        if is_new and self._has_own_hooks and self._handles:
            self._count(optimizer)

    def _count(self, optimizer: Optimizer) -> None:
        self._handles += [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def _owns_some(self, optimizer: Optimizer) -> bool:
        ours = {id(p) for p in self._parameters().values()}
        return any(id(p) in ours for group in optimizer.param_groups for p in group["params"])

    def _is_ours(self, optimizer: Optimizer) -> bool:
        if any(ref() is optimizer for ref in self._refs):
            return True
        if self._owns_some(optimizer):
            self.add(optimizer)
            self._fresh.add(id(optimizer))
            return True
        return False

    def _before_any(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        return self._before(optimizer, args, kwargs) if self._is_ours(optimizer) else None

    def _after_any(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._is_ours(optimizer):
            self._after(optimizer, args, kwargs)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Where a closure is given, the gradients exist only after it: then it is wrapped."""
        if is_in_backward():
            self._listener.in_backward(optimizer, has_stepped=False)
            return None
        outer = self._depth.get(id(optimizer), 0)
        if outer and _steps_under_way(optimizer) > 1:
            self._depth[id(optimizer)] = outer + 1
            return None
        self._depth[id(optimizer)] = 1
        closure = kwargs.get("closure") if "closure" in kwargs else (args[1] if len(args) > 1 else None)
        if closure is None:
            self._before_update(optimizer)
        self._listener.optimizer_begins()
        if closure is None:
            return None

        def then_look(*a: Any, **k: Any) -> Any:
            loss = closure(*a, **k)
            self._before_update(optimizer)
            return loss

        rest = {key: value for key, value in kwargs.items() if key != "closure"}
        return (args[0], then_look), rest

    def _before_update(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._stepped:
            self.end()
        self._listener.before_update(optimizer)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if is_in_backward():
            self._listener.in_backward(optimizer, has_stepped=True)
            self._stepped.add(id(optimizer))
            return
        depth = self._depth[id(optimizer)] = self._depth.get(id(optimizer), 1) - 1
        if depth > 0:
            return
        self._listener.after_update(optimizer)
        self._stepped.add(id(optimizer))
        # One that is found after another's step has ended is the rest of that step: the next one begins with both.
        is_rest = id(optimizer) in self._fresh and self._stepped == {id(optimizer)}
        self._fresh.discard(id(optimizer))
        if is_rest or all(id(one) in self._stepped for one in self.optimizers):
            self.end()

    def end(self) -> None:
        """The step ends here."""
        self._stepped.clear()
        self._listener.step_ended()


def _steps_under_way(optimizer: Optimizer) -> int:
    """How many of torch's wrappers around `step` are running for an optimizer; one whose step raised has none left."""
    count, frame = 0, sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _WRAPPER and frame.f_locals.get("self") is optimizer:
            count += 1
        frame = frame.f_back  # type: ignore[assignment]
    return count


_WRAPPER = inspect.getfile(Optimizer)
